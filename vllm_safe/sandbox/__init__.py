"""Execution of programs as user vllm, in a systemd sandbox and under limits."""
