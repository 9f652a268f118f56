"""How the unit tests run: what is generated has no time limit for an example, since the first one compiles, and others use the machine."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("unit", deadline=None)
settings.load_profile("unit")
