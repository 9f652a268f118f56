"""Ends of real servers: what they printed (tests/cases/why), what is right to say of it, and what is said."""
