"""Throwaway Debian machines for tests: a container with systemd (nspawn), an emulated machine (vm), and the real vLLM in them (engine)."""
