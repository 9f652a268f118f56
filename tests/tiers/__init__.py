"""Run several tiers of the system tests side by side: one line per finished test, failures as they come, and what the time went to."""
