"""A refusal is said where it is written."""

from __future__ import annotations

import pytest

from vllm_safe.apply.start_steps import refusal_steps
from vllm_safe.common.file_steps import WriteFile


def test_who_runs_apply_by_hand_reads_why_the_model_cannot_start(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []

    def write(step: WriteFile) -> None:
        written.append(step.content)

    monkeypatch.setattr(WriteFile, "run", write)
    for step in refusal_steps("x", "port 8000 is taken", "Take another."):
        step.run()
    assert capsys.readouterr().err == "vllm-safe: vllm@x.service cannot start: port 8000 is taken\n  Take another.\n"
    assert len(written) == 1
