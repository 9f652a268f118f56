"""What a person is told of a model on demand."""

from __future__ import annotations

import pytest

from vllm_safe.contract.state_file import State
from vllm_safe.status.demand_lines import DemandStatus, demand_line

READY = State("x", "run", 7, 1000.0, 0.0, "ready", 100.0, running=0, waiting=0)
OPEN = DemandStatus(listens=True)


@pytest.mark.parametrize(
    ("state", "line"),
    [
        (READY._replace(used=280.0, idle_timeout=1800.0), "on demand: no request for 12 min; stops in 18 min"),
        (READY._replace(used=990.0, idle_timeout=1800.0, running=2), "on demand: stops 30 min after its last request"),
        (READY._replace(used=990.0, running=1), "on demand"),
        (READY._replace(used=280.0), "on demand: no request for 12 min; stays until another model needs its room"),
        (READY, "on demand, but started by hand: it stays up"),
        (READY._replace(phase="loading"), ""),
        (None, ""),
    ],
)
def test_while_it_runs(state: State | None, line: str) -> None:
    assert demand_line(OPEN, state, 1000.0, running=True) == line


def test_a_model_that_only_persons_start() -> None:
    assert demand_line(DemandStatus(), READY, 1000.0, running=True) == ""
    assert demand_line(DemandStatus(), None, 1000.0, running=False) == ""


def test_while_it_does_not_run() -> None:
    assert demand_line(OPEN, None, 1000.0, running=False) == "on demand: the next request starts it"
    waits = DemandStatus(listens=True, waits_for="waiting 2 min for y to have been up for as long as its load took, then it makes room")
    assert demand_line(waits, None, 1000.0, running=False) == f"on demand: {waits.waits_for}"
