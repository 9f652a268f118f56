"""RAM, shared memory and time of a start."""

from __future__ import annotations

import pytest

from vllm_safe.common.sizes import GIB
from vllm_safe.plan.host_needs import HostLimits, StoredFiles, decide_host_needs
from vllm_safe.plan.past_starts import PastStart
from vllm_safe.plan.plan_question import Observed
from vllm_safe.plan.serving import Serving

TWO = Serving(tensor_parallel=2, enforce_eager=True)
EIGHT = Serving(tensor_parallel=8, enforce_eager=True)


@pytest.mark.parametrize(("forked", "measured"), [(False, 3.66), (True, 2.30)])
def test_two_workers_take_what_was_measured(*, forked: bool, measured: float) -> None:
    """tests/gpu/RESULTS.md, workers that are forked: memory of their own."""
    assert decide_host_needs(TWO, HostLimits(), forked=forked).memory == pytest.approx(measured * GIB, rel=0.02)


def test_what_was_seen_before_counts() -> None:
    past = (PastStart(Observed(EIGHT), 9 * GIB, 50e6), PastStart(Observed(TWO), 3 * GIB, 0.0))
    seen = decide_host_needs(EIGHT, HostLimits(), files=StoredFiles(77 * GIB), past=past)
    assert (seen.memory, seen.exact, seen.load) == (9 * GIB, True, 77 * GIB / 50e6)
    longer = decide_host_needs(Serving(tensor_parallel=8, max_model_len=4096, enforce_eager=True), HostLimits(), past=past)
    assert (longer.memory, longer.exact) == (9 * GIB, False)


def test_the_pace_of_the_disk_counts_where_the_load_keeps_to_it() -> None:
    past = (PastStart(Observed(EIGHT), 9 * GIB, 50e6),)
    needs = decide_host_needs(EIGHT, HostLimits(), files=StoredFiles(77 * GIB, 120e6), past=past)
    assert needs.load == 77 * GIB / 120e6
    assert needs.lines[-1].why == "77.0 GiB at 114 MiB/s, as measured by check --disk"


def test_the_time_of_a_load_is_not_guessed() -> None:
    assert decide_host_needs(TWO, HostLimits(), files=StoredFiles(GIB)).load is None


def test_what_exceeds_ram_is_swapped_and_said() -> None:
    needs = decide_host_needs(EIGHT, HostLimits(memory=4 * GIB, swap=64 * GIB))
    assert not needs.problem
    assert "to swap" in needs.lines[0].why


def test_what_exceeds_ram_and_swap_cannot_start_unless_the_estimate_may_be_off() -> None:
    needed = decide_host_needs(EIGHT, HostLimits()).memory
    assert not decide_host_needs(EIGHT, HostLimits(memory=int(needed * 0.8))).problem
    found = decide_host_needs(EIGHT, HostLimits(memory=int(needed * 0.4), swap=int(needed * 0.2)))
    assert "may use" in found.problem
    assert "limits.memory_max" in found.hint


def test_shared_memory_that_is_too_small_is_a_problem() -> None:
    assert "/dev/shm" in decide_host_needs(EIGHT, HostLimits(shared=GIB // 8)).problem  # noqa: S108 - a word of the message
    assert not decide_host_needs(EIGHT, HostLimits(shared=GIB // 2)).problem  # all rings are larger, but each takes what it uses
    assert not decide_host_needs(Serving(), HostLimits(shared=GIB // 8)).problem
