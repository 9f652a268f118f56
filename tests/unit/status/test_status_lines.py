"""Tests of the output of `vllm-safe status`."""

from __future__ import annotations

import json
import time

import pytest

from vllm_safe.contract.recorded_run import Gpu
from vllm_safe.contract.state_file import LoadProgress, State
from vllm_safe.status.status_lines import GuardEvent, ModelStatus, describe_phase, status_as_json, status_as_lines

NOW = 1795472448.0
GIB = 1 << 30
LOADING = State("x", "r", 7, NOW, NOW - 800, "loading", NOW - 700, "loading", LoadProgress(31 * GIB, 76 * GIB, 118 * (1 << 20), 390.0))
BUSY = ModelStatus(
    "x", NOW, "activating", "start", changed=NOW - 900, state=LOADING, memory=11 * GIB, memory_max=12 * GIB, swap=38 * GIB,
    swap_max=115 * GIB,
    memory_pressure=0.43, io_pressure=0.12, os_memory_pressure=0.02, os_io_pressure=0.0,
    acts=(GuardEvent(NOW - 300, "squeeze", "a"), GuardEvent(NOW - 120, "freeze", "system.slice waits")),
)  # fmt: skip


def text(seen: ModelStatus, why: str = "") -> str:
    return " ".join("\n".join(status_as_lines(seen, time.gmtime, why)).split())


def test_loading_says_how_far_how_fast_and_how_long() -> None:
    said = text(BUSY)
    assert said.startswith("x loading since ")
    assert "(11 min 40 s)" in said
    assert "41%, 31.0 GiB of 76.0 GiB, 118 MiB/s, 6 min 30 s left" in said
    assert "RAM 11.0 GiB of 12.0 GiB (92%), swap 38.0 GiB of 115 GiB (33%)" in said
    assert "time stalled on memory 43%, I/O 12%; system: memory 2%, I/O 0%" in said
    assert "guard: acted 2 times, last 2 min ago: system.slice waits" in said
    assert "[######" in said


def test_serving_says_requests_and_tokens() -> None:
    state = LOADING._replace(phase="ready", progress=None, running=2, waiting=1, tokens=345)
    assert "requests: 2 running, 1 waiting; 345 tokens generated" in text(BUSY._replace(state=state, active="active"))


def test_the_other_machines_of_a_model_are_shown_with_their_phases() -> None:
    state = LOADING._replace(phase="ready", progress=None, nodes="gpu2: ready, gpu3: not there")
    seen = BUSY._replace(state=state, active="active")
    assert "with gpu2: ready, gpu3: not there" in text(seen)
    assert status_as_json(seen)["nodes"] == "gpu2: ready, gpu3: not there"
    assert "gpu2" not in text(seen._replace(active="failed", sub="failed"))


def test_failed_says_why_and_where_to_read_on() -> None:
    said = text(ModelStatus("x", NOW, "failed", "failed", "oom-kill", changed=NOW - 60), "killed at its limit")
    assert said.startswith("x failed since ")
    assert "killed at its limit" in said
    assert "see: vllm-safe why x" in said


@pytest.mark.parametrize(
    ("seen", "phase"),
    [
        (ModelStatus("x", NOW, "activating", "auto-restart", state=LOADING), "waiting to start again"),
        (ModelStatus("x", NOW, "inactive", state=LOADING), "stopped"),
        (ModelStatus("x", NOW, "failed", state=LOADING), "failed"),
        (ModelStatus("x", NOW, "active"), "ready"),
        (ModelStatus("x", NOW, "deactivating"), "stopping"),
        (ModelStatus("x", NOW), "unknown: systemd does not answer"),
        (BUSY, "loading"),
    ],
)
def test_a_phase_in_a_word(seen: ModelStatus, phase: str) -> None:
    assert describe_phase(seen) == phase


def test_what_was_never_started_is_one_line() -> None:
    assert status_as_lines(ModelStatus("x", NOW, "inactive"), time.gmtime) == ["x  not started"]
    assert status_as_lines(ModelStatus("x", NOW, "inactive"), time.gmtime, "a person stopped it") == ["x  stopped", "  a person stopped it"]


def test_who_may_not_read_the_state_sees_what_systemd_was_told() -> None:
    assert "loading, 41 %" in text(ModelStatus("x", NOW, "activating", "start", status="loading, 41 %"))


def test_a_total_that_is_not_known_or_zero_is_no_division() -> None:
    for total in (None, 0):
        state = LOADING._replace(progress=LoadProgress(GIB, total))
        assert "1.0 GiB read" in text(BUSY._replace(state=state, memory_max=0))


def test_nothing_is_wider_than_80_columns_or_steers_the_terminal() -> None:
    hostile = BUSY._replace(
        state=LOADING._replace(progress=None, text="\x1b[2J " + "long words " * 40),
        acts=(GuardEvent(NOW, "x", "\x1b]0;x\x07" + "y" * 400),),
    )
    for line in status_as_lines(hostile, time.gmtime):
        assert len(line) < 80
        assert line.isprintable()
    assert status_as_lines(hostile._replace(name="\x1b[31m"), time.gmtime)[0].isprintable()


def test_a_wide_terminal_is_used() -> None:
    long = BUSY._replace(acts=(GuardEvent(NOW, "x", "y " * 40),))
    assert len(status_as_lines(long, time.gmtime, columns=140)) < len(status_as_lines(long, time.gmtime))


@pytest.mark.parametrize(
    ("active", "sub", "running"),
    [("active", "running", True), ("activating", "start", True), ("activating", "auto-restart", False), ("failed", "failed", False)],
)
def test_what_has_processes(active: str, sub: str, *, running: bool) -> None:
    assert ModelStatus("x", NOW, active, sub).is_running is running


def test_a_model_whose_preparation_runs_is_not_called_stopped() -> None:
    seen = ModelStatus("x", NOW, "failed", "failed", status="killed at its limit", changed=NOW - 3, preparing=True)
    since = time.strftime("%H:%M:%S", time.gmtime(NOW - 3))
    assert status_as_lines(seen, time.gmtime, "killed at its limit") == [f"x  preparing since {since} (3 s)"]
    assert describe_phase(seen._replace(active="activating", sub="auto-restart")) == "preparing"
    assert describe_phase(seen._replace(active="active", sub="running")) == "ready", "started by hand, beside a model that runs"


def test_json_has_bytes_and_seconds() -> None:
    found = json.loads(json.dumps(status_as_json(BUSY, "w")))
    assert (found["phase"], found["memory"], found["progress"]["read"], found["why"]) == ("loading", 11 * GIB, 31 * GIB, "w")
    assert found["guard"] == {"count": 2, "last": {"time": NOW - 120, "act": "freeze", "text": "system.slice waits"}}


COOL = Gpu(9 * GIB, 12 * GIB, 0.97, 168.0, 71, 0.0, 0.0, 0.0, 1, 3)


def test_all_cards_are_a_line_and_those_in_trouble_another() -> None:
    said = text(BUSY._replace(gpus=(COOL, COOL._replace(temperature=91, heat=1.0), COOL._replace(capped=0.5), Gpu(0, 0, 0.0))))
    assert "GPUs: 27.0 GiB of 36.0 GiB, 504 W, 71-91 °C, link x1 Gen3" in said
    assert "GPU 1 throttled by heat" in said
    assert "GPU 2 held at the power limit" in said
    assert "GPU 3 without an answer" in said
    calm = text(BUSY._replace(gpus=(COOL, COOL._replace(lanes=16))))
    assert "71 °C, link x1 Gen3, link x16 Gen3" in calm
    assert "throttled" not in calm


def test_what_a_card_does_not_say_is_left_out() -> None:
    lines = status_as_lines(BUSY._replace(gpus=(Gpu(9 * GIB, 12 * GIB, 0.5),)), time.gmtime)
    assert "  GPUs: 9.0 GiB of 12.0 GiB" in lines
    assert status_as_json(BUSY._replace(gpus=(COOL,)))["gpus"] == [COOL._asdict()]
