"""What only real NVIDIA cards can show: scenarios that run inside any Debian with systemd, the package, an engine and a card.

`python3 -m tests.gpu` runs them there with nothing but the standard library; tests/gpu/bed.py brings them into a bed (make test-gpu).
"""
