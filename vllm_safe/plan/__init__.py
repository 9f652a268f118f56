"""Whether a model fits on cards, and with which arguments: computed from its files, before anything is loaded."""
