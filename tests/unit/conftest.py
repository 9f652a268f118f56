"""Settings of the unit tests: examples of hypothesis have no time limit, since the first one compiles, and the machine may be busy."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("unit", deadline=None)
settings.load_profile("unit")
