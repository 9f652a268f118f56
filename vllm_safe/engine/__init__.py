"""The engine (vLLM in a virtual environment of its own): facts, decisions and steps of `vllm-safe install`, and the locks."""
