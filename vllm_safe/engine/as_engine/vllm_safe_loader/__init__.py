"""A plugin of vLLM: the default loader, with the checkpoint read by one process in order and in large requests."""

from __future__ import annotations

from importlib import import_module


def register() -> None:
    """Make it the loader for the load format `auto`. A vLLM that lacks what it imports keeps its own loader, and the log says so."""
    try:
        import_module("vllm_safe_loader.ring_loader").take_over()
    except (ImportError, AttributeError) as error:
        import_module("logging").getLogger("vllm.vllm_safe_loader").warning("vllm-safe: vLLM reads the checkpoint itself: %s", error)
