"""The gateway: one address for all models. It reads the name of the model in a request, waits for its turn, and passes bytes both ways."""
