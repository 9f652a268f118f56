"""The report of a refusal, when it is written to the launch file."""

from __future__ import annotations

import pytest

from vllm_safe.apply.start_steps import refusal_steps
from vllm_safe.common.file_steps import WriteFile


def test_a_manual_apply_prints_why_the_model_cannot_start(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    def write(step: WriteFile) -> None:
        written.append(step.content)

    monkeypatch.setattr(WriteFile, "run", write)
    for step in refusal_steps("x", "port 8000 is already in use", "Change it."):
        step.run()
    assert capsys.readouterr().err == "vllm-safe: vllm@x.service cannot start: port 8000 is already in use\n  Change it.\n"
    assert len(written) == 1
