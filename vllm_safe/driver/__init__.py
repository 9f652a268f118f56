"""The NVIDIA driver and its cards: facts about them, and findings on whether an engine can work with them."""
