"""What is there: facts about this machine, read once into immutable values."""
