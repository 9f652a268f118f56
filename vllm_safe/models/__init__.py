"""Model files: their places on disk, and their download from a hub by `vllm-safe fetch`."""
