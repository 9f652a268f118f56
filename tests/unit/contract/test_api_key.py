"""The key that systemd hands over as a credential."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_safe.common.errors import Failure
from vllm_safe.contract.api_key import read_api_key


def test_the_key_is_read_from_the_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert not read_api_key()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "api-key").write_text("\n")  # SetCredential= of the unit, where no key is configured
    assert not read_api_key()
    (tmp_path / "api-key").write_text("secret\n")
    assert read_api_key() == "secret"


def test_a_key_that_cannot_be_read_is_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with pytest.raises(Failure, match="cannot read the API key"):
        read_api_key()
