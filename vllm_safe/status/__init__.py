"""What `vllm-safe status` reads and shows."""
