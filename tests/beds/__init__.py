"""Throwaway Debian machines to prove claims on: a container with systemd (nspawn), an emulated machine (vm), the real vLLM (engine)."""
