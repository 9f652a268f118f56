"""Run a program as user vllm, in a sandbox of systemd's and under limits."""
