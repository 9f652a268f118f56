"""Scenarios for real NVIDIA GPUs. They run in any Debian with systemd, the package, an engine and a GPU.

`python3 -m tests.gpu` runs them there, with the standard library only; tests/gpu/bed.py runs them in a bed (make test-gpu).
"""
