"""earlyoom: the administrator's own arguments for it, and those that vllm-safe gives it."""
