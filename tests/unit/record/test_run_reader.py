"""Whether a recorded run without an end is over, by what systemd reports about its unit."""

from __future__ import annotations

import pytest

from tests.builders.runs import make_run
from vllm_safe.contract.recorded_run import Event
from vllm_safe.record import run_reader

INVOCATION = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    ("shown", "since", "is_over"),
    [
        ({"ActiveState": "active", "SubState": "running", "InvocationID": INVOCATION}, 5, False),
        ({"ActiveState": "activating", "SubState": "auto-restart", "InvocationID": INVOCATION}, 5, True),
        ({"ActiveState": "failed", "SubState": "failed", "InvocationID": INVOCATION}, 5, True),
        ({"ActiveState": "active", "SubState": "running", "InvocationID": INVOCATION[::-1]}, 5, False),  # the recorder still writes
        ({"ActiveState": "inactive", "SubState": "dead", "InvocationID": ""}, 5, True),  # stopped, and systemd has forgotten the unit
        ({"ActiveState": "inactive", "SubState": "dead", "InvocationID": ""}, 500, False),  # its recorder was killed: judged as such
        ({}, 5, False),  # no systemd answers
    ],
)
def test_a_run_is_over_when_systemd_says_so(monkeypatch: pytest.MonkeyPatch, shown: dict[str, str], since: float, *, is_over: bool) -> None:
    monkeypatch.setattr(run_reader, "unit_properties", lambda *_: shown)
    made = make_run()
    begun = made.start._replace(run=f"20260101-000000-{INVOCATION[:8]}", boot="boot", time=1000.0)
    run = made._replace(start=begun, samples=(), events=(Event(1100.0, "phase", "ready"),), end=None)
    assert (run_reader.with_end(run, "boot", 1100.0 + since).end is not None) == is_over
