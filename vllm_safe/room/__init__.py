"""Which models have to go so that another one fits: one decision, for what starts models and for what queues requests."""
