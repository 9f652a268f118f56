"""Ends of real servers: their output (tests/cases/why), the right explanation of each, and the explanation that vllm-safe gives."""
