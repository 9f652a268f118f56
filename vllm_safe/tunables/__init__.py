"""Kernel tunables that hold while a model runs: facts, the decision, and the steps there and back."""
