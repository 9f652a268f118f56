"""When a model that a request started has had none for long enough: by what it counts, never by open connections or our own requests."""

from __future__ import annotations

from vllm_safe.contract.launch_file import Launch
from vllm_safe.launch.idleness import FINISHED, Idleness
from vllm_safe.launch.liveness import RUNNING, WAITING, MetricsReader

ASKED = Launch("demo", request=7, idle_timeout=60.0)


def figures(running: int = 0, waiting: int = 0, finished: float = 0.0) -> dict[str, float]:
    return {RUNNING: float(running), WAITING: float(waiting), FINISHED: finished}


def read(idle: Idleness, now: float, **values: int) -> bool:
    """Return whether it is over after a reading. The wall clock is 1000 s ahead."""
    idle.counted(now, now + 1000, figures(**values))
    return idle.is_over


def test_nobody_asking_for_the_time_is_the_end() -> None:
    idle = Idleness(ASKED, 0.0, 1000.0)
    assert [read(idle, now) for now in (10.0, 59.0, 60.0)] == [False, False, True]
    assert idle.used == 1000.0


def test_a_suspend_is_no_idle_time() -> None:
    idle = Idleness(ASKED, 0.0, 1000.0)
    assert not read(idle, 10.0)
    idle.counted(20.0, 1620.0, figures())  # the machine slept for 600 s
    assert not idle.is_over
    assert idle.used == 1600.0  # 20 s before, as `status` shows it
    idle.counted(60.0, 1660.0, figures())
    assert (idle.is_over, idle.used) == (True, 1600.0)


def test_a_request_that_runs_or_waits_is_use_however_long_it_takes() -> None:
    idle = Idleness(ASKED, 0.0, 1000.0)
    assert not any(read(idle, float(now), running=1) for now in range(0, 3000, 10))
    assert not any(read(idle, float(now), waiting=1) for now in range(3000, 6000, 10))
    assert idle.used == 6990.0


def test_requests_too_short_to_be_seen_running_are_use() -> None:
    idle = Idleness(ASKED, 0.0, 1000.0)
    assert not any(read(idle, float(now), finished=now // 50) for now in range(0, 3000, 10))
    assert read(idle, 3100.0, finished=59)


def test_what_was_counted_before_it_served_is_no_use() -> None:
    idle = Idleness(ASKED, 0.0, 1000.0)
    assert not read(idle, 10.0, finished=5)
    assert idle.used == 1000.0


def test_our_own_requests_are_no_use_whenever_they_are_counted() -> None:
    idle = Idleness(ASKED, 0.0, 1000.0)
    read(idle, 10.0)
    idle.asked()
    read(idle, 20.0, running=1)
    idle.answered()
    read(idle, 30.0)  # a reading from before the answer
    assert not read(idle, 40.0, finished=1)
    assert read(idle, 60.0, finished=1)
    assert idle.used == 1000.0


def test_somebody_asking_beside_us_is_use() -> None:
    idle = Idleness(ASKED, 0.0, 1000.0)
    read(idle, 10.0)
    idle.asked()
    read(idle, 20.0, running=2)
    assert idle.used == 1020.0
    idle.answered()
    read(idle, 30.0, finished=2)
    assert idle.used == 1030.0


def test_a_server_that_does_not_answer_or_does_not_count_is_not_idle() -> None:
    idle = Idleness(ASKED, 0.0, 1000.0)
    idle.counted(100.0, 1100.0, {})
    assert not idle.is_over
    idle.counted(100.0, 1100.0, {RUNNING: 0.0, WAITING: 0.0})
    assert not idle.is_over
    assert idle.used == 1100.0


def test_without_a_limit_it_stays() -> None:
    assert not read(Idleness(ASKED._replace(idle_timeout=0.0), 0.0, 1000.0), 1e6)


def test_a_server_without_counters_is_used_while_somebody_is_connected() -> None:
    idle = Idleness(ASKED, 0.0, 1000.0)
    idle.connected(50.0, 1050.0, 1)
    idle.connected(100.0, 1100.0, 0)
    assert (idle.is_over, idle.used) == (False, 1050.0)
    idle.connected(110.0, 1110.0, 0)
    assert idle.is_over


def test_the_counter_is_read_over_all_reasons_of_an_end() -> None:
    reader = MetricsReader()
    line = f'{FINISHED}{{engine="0",finished_reason="%s",model_name="m"}} %s\n'
    reader.feed((line % ("stop", "3.0") + line % ("abort", "1.0")).encode())
    assert reader.values[FINISHED] == 4.0
