"""Settings of the unit tests: examples of hypothesis have no time limit, since the first one compiles, and the machine may be busy."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from tests.builders.fake_nvml import build_fake_nvml

settings.register_profile("unit", deadline=None)
settings.load_profile("unit")


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the fake libnvidia-ml.so.1."""
    return build_fake_nvml(tmp_path_factory.mktemp("nvml"))
