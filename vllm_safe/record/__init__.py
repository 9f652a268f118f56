"""The flight recorder: what a model, its limits and the machine did from a start to its end. Standard library only."""
