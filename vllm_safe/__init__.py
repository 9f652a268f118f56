"""vllm-safe: run a large language model on a machine that is too small for it, and still log in."""

__version__ = "0.3.0"
