"""Signs of life: what counts as a hang, after which time, and what never counts as one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.builders.reasons import time_of_day
from vllm_safe.contract.launch_file import Launch
from vllm_safe.launch.http_probe import Answer
from vllm_safe.launch.liveness import RUNNING, SURELY, TOKENS, WAITING, Liveness, MetricsReader
from vllm_safe.launch.processes import Process

VLLM = Launch("demo", health="http://x/health", metrics="http://x/metrics", completions="http://x/v1/completions", hang_timeout=600.0)
OTHER = Launch("demo", health="http://x/health", hang_timeout=600.0)
OK, DEAD = Answer("returns HTTP 200", healthy=True, status=200), Answer("returns HTTP 503", status=503)
CORE = Process(11, 1, "VLLM::EngineCor", "S", 1.0, 0, 0, 0, 1, 1)
WORKER = Process(12, 1, "VLLM::Worker_TP", "S", 1.0, 0, 0, 0, 1, 1)
OFTEN = 10  # seconds between two readings


def _until(alive: Liveness, most: float, each: Callable[[float], None]) -> tuple[float, str]:
    """Return the time and text of the first verdict; (most, "") if there is none."""
    for now in range(OFTEN, int(most) + 1, OFTEN):
        alive.pass_time(float(now), float(now))
        each(float(now))
        if said := alive.verdict(time_of_day):
            return float(now), said
    return most, ""


def _counts(alive: Liveness, **values: float) -> None:
    alive.counted(
        {RUNNING: 0.0, WAITING: 0.0, TOKENS: 0.0} | {{"running": RUNNING, "tokens": TOKENS}[key]: value for key, value in values.items()}
    )


def test_requests_that_get_no_token_are_a_hang() -> None:
    alive = Liveness(VLLM, 0.0)
    when, said = _until(alive, 2000, lambda _: _counts(alive, running=3, tokens=5))
    assert 600 <= when <= 640
    assert said.startswith("3 requests run and no token counter moves, for 10 min")
    assert said.endswith(" (hang_timeout)")
    assert (alive.running, alive.tokens) == (3, 5)


def test_a_machine_that_sees_its_own_stopped_process_reports_it_before_another_misses_the_tokens() -> None:
    several = VLLM._replace(nodes=("gpu1", "gpu2"))
    without_tokens, with_the_process = Liveness(several, 0.0), Liveness(several, 0.0)
    _counts(without_tokens, running=1, tokens=5)
    missed, _ = _until(without_tokens, 2000, lambda _: _counts(without_tokens, running=1, tokens=5))
    stopped = WORKER._replace(state="T")
    # It has just looked when the process is stopped.
    seen, said = _until(with_the_process, 2000, lambda now: with_the_process.looked([stopped if now > OFTEN else WORKER]))
    assert "is stopped, for 10 min" in said
    assert seen < missed <= 640


def test_one_token_in_nine_minutes_is_life() -> None:
    alive = Liveness(VLLM, 0.0)
    assert _until(alive, 20_000, lambda now: _counts(alive, running=1, tokens=now // 540))[1] == ""


def test_a_long_prompt_that_fills_the_cache_is_life() -> None:
    alive = Liveness(VLLM, 0.0)
    assert _until(alive, 20_000, lambda now: alive.counted({RUNNING: 1.0, "vllm:kv_cache_usage_perc": now // 300 / 1e4}))[1] == ""


def test_an_idle_engine_is_asked_for_a_token_now_and_then_and_no_answer_is_a_hang() -> None:
    alive, asked = Liveness(VLLM, 0.0), []

    def each(now: float) -> None:
        _counts(alive, tokens=5)
        if alive.wants_token:
            alive.asked_for_token()
            asked.append(now)
            if len(asked) < 5:
                alive.got_token(OK)

    when, said = _until(alive, 20_000, each)
    assert asked == [310.0, 610.0, 910.0, 1210.0, 1510.0]
    assert 2110 <= when <= 2120
    assert said.startswith("a request for one token is not answered")


def test_a_token_asked_for_in_a_queue_that_moves_is_no_hang() -> None:
    alive = Liveness(VLLM, 0.0)
    _until(alive, 400, lambda _: _counts(alive))
    alive.asked_for_token()
    assert _until(alive, 20_000, lambda now: _counts(alive, running=9, tokens=now))[1] == ""


def test_no_token_is_asked_of_who_does_not_want_it() -> None:
    for launch in (OTHER, VLLM._replace(completions="")):
        alive = Liveness(launch, 0.0)
        _until(alive, 5000, lambda _: None)
        assert not alive.wants_token


@pytest.mark.parametrize(("launch", "limit"), [(VLLM, SURELY), (OTHER, 600.0)])
def test_503_is_vllm_with_a_dead_engine_and_of_others_what_any_failure_is(launch: Launch, limit: float) -> None:
    alive = Liveness(launch, 0.0)
    when, said = _until(alive, 2000, lambda _: alive.health(DEAD))
    assert limit <= when <= limit + 2 * OFTEN
    assert said.startswith("http://x/health returns HTTP 503, for ")
    assert ("(hang_timeout)" in said) is (limit != SURELY)  # a setting is named only if it was the limit


UNREACHABLE = Answer("cannot be reached (Temporary failure in name resolution)")


@pytest.mark.parametrize("answer", [UNREACHABLE, DEAD])
def test_tokens_outvote_health(answer: Answer) -> None:
    alive = Liveness(VLLM, 0.0)

    def each(now: float) -> None:
        alive.health(answer)
        _counts(alive, running=1, tokens=now)

    assert _until(alive, 20_000, each)[1] == ""


def test_a_token_that_was_asked_for_outvotes_health_and_another_answer_does_not() -> None:
    for answer, hangs in ((OK, False), (Answer("returns HTTP 404", status=404), True), (UNREACHABLE, True)):
        alive = Liveness(VLLM, 0.0)

        def each(_: float, alive: Liveness = alive, answer: Answer = answer) -> None:
            alive.health(UNREACHABLE)
            _counts(alive, tokens=5)
            if alive.wants_token:
                alive.asked_for_token()
                alive.got_token(answer)

        assert bool(_until(alive, 20_000, each)[1]) is hangs


def test_health_that_fails_now_and_then_is_no_hang() -> None:
    alive = Liveness(OTHER, 0.0)
    assert _until(alive, 20_000, lambda now: alive.health(OK if now % 500 == 0 else DEAD))[1] == ""


def test_a_stopped_process_is_a_hang_a_traced_one_is_somebody_at_work() -> None:
    for state, hangs in (("T", True), ("t", False), ("D", False)):
        alive = Liveness(VLLM._replace(completions=""), 0.0)
        when, said = _until(alive, 2000, lambda _, a=alive, s=state: a.looked([CORE, WORKER._replace(state=s)]))  # type: ignore[misc] # its default
        assert bool(said) is hangs
        assert not hangs or (600 <= when <= 640 and "VLLM::Worker_TP (12) is stopped" in said)


def test_a_process_that_goes_on_after_a_while_is_forgiven() -> None:
    alive = Liveness(OTHER, 0.0)
    assert _until(alive, 20_000, lambda now: alive.looked([WORKER._replace(state="S" if now % 300 == 0 else "T")]))[1] == ""


@pytest.mark.parametrize("left", [[CORE], [CORE, WORKER._replace(state="Z")]])
def test_a_worker_that_is_gone_or_a_zombie_is_a_hang_soon(left: list[Process]) -> None:
    alive = Liveness(VLLM, 0.0)
    alive.looked([CORE, WORKER])
    when, said = _until(alive, 2000, lambda _: alive.looked(left))
    assert SURELY <= when <= SURELY + 2 * OFTEN
    assert "VLLM::Worker_TP (12) is gone" in said


def test_other_processes_may_come_and_go() -> None:
    alive = Liveness(VLLM._replace(completions=""), 0.0)
    alive.looked([CORE, WORKER._replace(pid=13, comm="gcc")])
    assert _until(alive, 2000, lambda _: alive.looked([CORE]))[1] == ""


def test_time_in_which_we_were_frozen_does_not_count() -> None:
    alive = Liveness(OTHER, 0.0)
    alive.health(DEAD)
    alive.pass_time(100_000.0, 100_000.0)
    assert alive.verdict(time_of_day) == ""


def test_a_short_timeout_is_looked_at_more_often() -> None:
    assert Liveness(OTHER._replace(hang_timeout=5.0), 0.0).interval == 1.0


@pytest.mark.parametrize("size", [1, 7, 100, 100_000])
def test_figures_are_found_in_a_long_answer_cut_anywhere(size: int) -> None:
    text = (
        b"HTTP/1.0 200 OK\r\n\r\n# HELP vllm:num_requests_running Number\n"
        b'vllm:num_requests_running{engine="0",model_name="a} b"} 2.0\nvllm:num_requests_running{engine="1"} 1.0\n'
        b'vllm:num_requests_waiting_by_reason{reason="capacity"} 9.0\nvllm:generation_tokens_total{engine="0"} 1.5e+06\n'
        b'vllm:num_requests_waiting{engine="1"} NaN\nvllm:generation_tokens_total{engine="1"} +Inf\n'
        b'vllm:generation_tokens_created{engine="0"} 1.7e+09\nvllm:num_requests_waiting{engine="0"} x\n' + b"y" * 10_000 + b"\n"
    )
    figures = MetricsReader()
    for start in range(0, len(text), size):
        figures.feed(text[start : start + size])
    assert figures.values == {RUNNING: 3.0, TOKENS: 1.5e6}
