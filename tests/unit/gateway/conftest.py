"""The rig of the tests of the gateway."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.builders.gateway_rig import Rig


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(tmp_path, monkeypatch)
