"""Power limits of GPUs while a model runs: facts, the decision, and the steps that set and restore them."""
