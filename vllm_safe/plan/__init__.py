"""The plan of a start: whether a model fits on its GPUs, and with which arguments. It is computed from files, before anything is loaded."""
