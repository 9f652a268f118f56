"""Model files: where they are, and how `vllm-safe fetch` brings them from a hub."""
