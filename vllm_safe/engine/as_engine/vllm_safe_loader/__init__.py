"""A vLLM plugin that replaces the default loader: one process reads the checkpoint for all workers, in order, in large requests.

The plugin runs in the engine's Python and cannot import the rest of the package. So a little code is in both, such as the calls of libc
here and in launch/page_cache.py.
"""

from __future__ import annotations

from importlib import import_module


def register() -> None:
    """Register the loader for the load format `auto`.

    If this vLLM lacks something that the loader imports, vLLM keeps its own loader, and a warning says so.
    """
    try:
        import_module("vllm_safe_loader.ring_loader").take_over()
    except (ImportError, AttributeError) as error:
        import_module("logging").getLogger("vllm.vllm_safe_loader").warning("vllm-safe: vLLM reads the checkpoint itself: %s", error)
