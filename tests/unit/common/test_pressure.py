"""Memory pressure (PSI) of the whole machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_safe.common.pressure import memory_pressure, memory_stalled

TEXT = "some avg10=12.50 avg60=3.00 avg300=1.00 total=123456\nfull avg10=1.00 avg60=0.00 avg300=0.00 total=99\n"


@pytest.mark.parametrize(("text", "share", "total"), [(TEXT, 0.125, 123456), ("", None, None), (None, None, None)])
def test_the_share_and_the_total(tmp_path: Path, text: str | None, share: float | None, total: int | None) -> None:
    if text is not None:
        (tmp_path / "proc/pressure").mkdir(parents=True)
        (tmp_path / "proc/pressure/memory").write_text(text)
    assert (memory_pressure(tmp_path), memory_stalled(tmp_path)) == (share, total)
