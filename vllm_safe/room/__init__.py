"""Which models must stop so that another one fits: one decision, used by `prepare` and by the gateway."""
