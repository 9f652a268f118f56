"""Facts about this machine, read once into immutable values."""
