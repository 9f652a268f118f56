"""earlyoom: what the administrator wrote for it, and the arguments that it gets."""
