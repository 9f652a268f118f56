"""NVIDIA's driver and its cards: facts about them, and whether an engine can work on them."""
