"""The engine (vLLM in its own virtual environment): facts, decisions and steps of `vllm-safe install`, and the lock files."""
