"""The flight recorder: a record of a model, its limits and the machine from a start to its end. Standard library only."""
