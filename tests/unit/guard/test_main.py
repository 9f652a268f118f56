"""The program: what it loads, where it refuses, and that what it rehearses works."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vllm_safe.guard import main as program

ROOT = Path(__file__).parents[3]


def test_it_loads_nothing_that_it_has_no_use_for() -> None:
    code = f"import sys; sys.path.append({str(ROOT)!r}); import vllm_safe.guard.main; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"json", "dataclasses", "inspect", "pathlib", "subprocess", "logging", "click", "yaml", "traceback"} & set(loaded)


def test_on_cgroup_v1_or_a_hybrid_it_refuses_and_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(program, "notify", lambda **fields: said.append(fields["STATUS"]))
    (tmp_path / "unified").mkdir()
    assert program.main(str(tmp_path)) == 2
    assert "systemd.unified_cgroup_hierarchy=1" in said[0]


def test_the_rehearsal_goes_through_every_step() -> None:
    program.rehearse()
