"""What `vllm-safe bundle` writes for an issue: what several commands print, without secrets and without names of machines and people."""
