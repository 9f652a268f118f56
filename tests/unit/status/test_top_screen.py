"""Tests of the screen of `vllm-safe top`."""

from __future__ import annotations

import time

import pytest

from vllm_safe.contract.state_file import State
from vllm_safe.status.demand_lines import DemandStatus
from vllm_safe.status.status_lines import ModelStatus
from vllm_safe.status.top_screen import MachineMemory, ShownModel, top_screen

NOW = 1795472448.0  # 22:20:48 UTC
GIB = 1 << 30
STATE = State("x", "r", 7, NOW, NOW - 800, "ready", NOW - 700, running=1, waiting=0, tokens=900)
SERVING = ModelStatus("x", NOW, "active", "running", state=STATE)
MEMORY = MachineMemory(16 * GIB, GIB, 128 * GIB, 90 * GIB)
CARDS = ["GPU  GiB used", "  0  1.0/12.0"]


def screen(*models: ShownModel, rows: int | None = None, columns: int = 80) -> list[str]:
    return [line.text for line in top_screen(NOW, MEMORY, models, CARDS, time.gmtime, columns=columns, rows=rows)]


def test_machine_models_cards_and_last_what_does_not_run() -> None:
    lines = screen(ShownModel(ModelStatus("idle", NOW, "inactive")), ShownModel(SERVING))
    assert lines[0] == "22:20:48  RAM 1.0 GiB of 16.0 GiB available  swap 38.0 GiB of 128 GiB used"
    order = [next(at for at, line in enumerate(lines) if line.startswith(word)) for word in ("x  ready", "GPU", "idle  not started")]
    assert order == sorted(order)


def test_headings_are_the_first_lines_of_what_is_watched() -> None:
    lines = top_screen(NOW, MEMORY, [ShownModel(SERVING), ShownModel(ModelStatus("idle", NOW, "inactive"))], CARDS, time.gmtime)
    assert [line.text[:3] for line in lines if line.heading] == ["22:", "x  ", "GPU"]


def test_tokens_per_second_since_an_earlier_look() -> None:
    def pace(before: State, seconds: float) -> str:
        return " ".join(screen(ShownModel(SERVING, before=SERVING._replace(state=before, time=NOW - seconds))))

    assert "900 tokens generated (40.0/s)" in pace(STATE._replace(tokens=500), 10)
    assert "/s)" not in pace(STATE._replace(tokens=500, run="another start"), 10)
    assert "/s)" not in pace(STATE._replace(tokens=None), 10)
    assert "/s)" not in pace(STATE, 0)


def test_whether_the_guard_acted_is_always_said_of_what_runs() -> None:
    assert "  guard: has not acted" in screen(ShownModel(SERVING))
    assert "guard" not in " ".join(screen(ShownModel(ModelStatus("idle", NOW, "inactive"))))


def test_a_model_that_failed_has_its_reason_and_the_next_step() -> None:
    failed = screen(ShownModel(ModelStatus("x", NOW, "failed", "failed", changed=NOW - 60), "killed at its limit"))
    assert "  killed at its limit" in failed
    assert "  see: vllm-safe why x" in failed


def test_a_model_on_demand_says_so_and_what_its_start_waits_for() -> None:
    waits = ModelStatus("x", NOW, "inactive", changed=NOW - 60, demand=DemandStatus(listens=True, waits_for="waiting 2 min for y"))
    assert "x  stopped, on demand: waiting 2 min for y" in screen(ShownModel(waits, "it was stopped"))
    stopped = waits._replace(demand=DemandStatus(listens=True))
    assert "x  stopped, on demand: it was stopped" in screen(ShownModel(stopped, "it was stopped"))


def test_a_stopped_model_is_one_line_however_much_there_is_to_say() -> None:
    lines = screen(ShownModel(ModelStatus("x", NOW, "inactive", changed=NOW - 60), "why " * 60))
    assert len([line for line in lines if line.startswith("x  stopped: why")]) == 1
    assert not [line for line in lines if line.startswith("  why")]


@pytest.mark.parametrize("rows", [4, 10, 24])
@pytest.mark.parametrize("columns", [40, 80, 132])
def test_it_fits_whatever_runs(rows: int, columns: int) -> None:
    models = [ShownModel(SERVING._replace(name=f"{number}" * 60, status="long " * 60)) for number in range(9)]
    lines = screen(*models, rows=rows, columns=columns)
    assert len(lines) == rows
    assert all(len(line) <= columns for line in lines)
    assert lines[-1].startswith("... ")


def test_blank_lines_go_before_anything_else_does() -> None:
    everything = screen(ShownModel(SERVING))
    assert "" in everything
    said = [line for line in everything if line]
    assert screen(ShownModel(SERVING), rows=len(said)) == said
    assert screen(ShownModel(SERVING), rows=len(said) - 1)[-1] == "... 2 more lines: a taller terminal shows them"


def test_without_models_and_figures_it_says_so() -> None:
    lines = [line.text for line in top_screen(NOW, MachineMemory(), [], ["GPUs: none"], time.gmtime)]
    assert lines == ["22:20:48", "", "GPUs: none", "", "no model is configured or running"]
