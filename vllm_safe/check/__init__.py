"""What `vllm-safe check` looks at, and the checklist."""
