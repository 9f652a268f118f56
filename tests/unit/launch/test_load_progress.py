"""The progress of a loading server: which figures count, which time counts, and how much has been read."""

from __future__ import annotations

import pytest

from tests.builders.reasons import time_of_day
from vllm_safe.common.sizes import GIB, MIB
from vllm_safe.contract.state_file import LoadProgress
from vllm_safe.launch.load_progress import Checkpoint, CommunicationWait, ProcessReadings, ProcessTotals, Stillness
from vllm_safe.launch.processes import Process


def _process(pid: int = 1, **figures: float) -> Process:
    known = {"started": 1, "comm": "x", "state": "S", "cpu": 0.0, "faults": 0, "read": 0, "called": 0, "resident": 0, "mapped": 0}
    return Process(pid=pid, **known | figures)  # type: ignore[arg-type]


def _after(seconds: int, each: ProcessReadings) -> ProcessReadings:
    """Return the stillness after these readings, with ten processes as for a model on eight GPUs."""
    return ProcessReadings._make([*(value * seconds for value in each[:-1]), 10])


def _still_after(seconds: int, per_second: ProcessReadings) -> Stillness:
    """Return the stillness after readings that grow by this amount each second."""
    watch = Stillness(0.0, 1000.0)
    for now in range(seconds + 1):
        watch.look(float(now), 1000.0 + now, _after(now, per_second))
    return watch


def test_nothing_at_all_is_still() -> None:
    watch = _still_after(60, ProcessReadings())
    assert watch.still == 60
    assert watch.since == 1000.0


def test_what_a_dead_server_does_is_no_progress_for_ever() -> None:
    assert _still_after(3600, ProcessReadings(read=4096, mapped=0, resident=2000, cpu=0.1)).still == 3600


@pytest.mark.parametrize(
    "moving",
    [
        ProcessReadings(read=MIB),
        ProcessReadings(read=200 << 10),
        ProcessReadings(mapped=MIB),
        ProcessReadings(resident=MIB),
        ProcessReadings(gpu=4 * MIB),
        ProcessReadings(cpu=0.5),
        ProcessReadings(news=1),
    ],
)
def test_each_figure_alone_is_progress(moving: ProcessReadings) -> None:
    assert _still_after(3600, moving).still < 15


def test_progress_after_a_long_stillness_counts_soon() -> None:
    watch = _still_after(840, ProcessReadings())
    for second in range(1, 60):
        if watch.look(840.0 + second, 1840.0 + second, ProcessReadings(read=second * MIB)):
            break
    assert second < 60
    assert watch.still == 0


def test_what_shrank_and_grows_again_is_progress() -> None:
    watch = Stillness(0.0, 0.0)
    assert [watch.look(float(now), 0.0, ProcessReadings(resident=size)) for now, size in enumerate((GIB, GIB // 2, GIB // 2, GIB))] == [
        True,
        False,
        False,
        True,
    ]


def test_a_freeze_is_not_counted() -> None:
    watch = _still_after(10, ProcessReadings())
    watch.look(10.0 + 3600, 5000.0, ProcessReadings())
    assert watch.still == 15
    watch.look(0.0, 5001.0, ProcessReadings())  # a clock that is set back makes no difference either
    assert watch.still == 15


def test_the_reason_says_what_stood_still_and_since_when() -> None:
    watch = _still_after(30, ProcessReadings(read=4096, resident=2048, cpu=0.01))
    assert (
        watch.describe(time_of_day)
        == "120 KiB read, 0 B mapped, 60.0 KiB of memory allocated, 0.3 s of CPU time, no new output since 00:16:40"
    )
    assert "60.0 KiB of memory allocated, 30.0 KiB of GPU memory allocated, " in _still_after(
        30, ProcessReadings(resident=2048, gpu=1024)
    ).describe(time_of_day)


def test_sums_outlive_the_processes() -> None:
    sums = ProcessTotals()
    assert sums.add([_process(1, read=10, cpu=1.0, resident=5), _process(2, read=5, resident=5)], 0).read == 15
    after = sums.add(
        [_process(2, read=8, resident=6), _process(1, started=9, read=3)], 4
    )  # process 1 ended, and another process got its pid
    assert after == ProcessReadings(read=21, mapped=0, resident=6, cpu=1.0, news=4, processes=2)
    assert sums.add([_process(2, read=8, faults=70), _process(3, faults=5)], 4).faults == 75


# The log of vllm issue 51513, and the form before vLLM 0.11.
LINE = (
    "(EngineCore pid=71) INFO 11-23 22:21:57 [shm_broadcast.py:705] No available shared memory broadcast block found in {} seconds. "
    "This typically happens when some processes are hanging or doing some time-consuming work (e.g. compilation, weight/kv cache "
    "quantization).\n"
)
OLD_LINE = "(EngineCore_0 pid=53) INFO 09-02 10:02:11 [shm_broadcast.py:466] No available block found in 60 second.\n"


def _waited(each_second: ProcessReadings, seconds: int = 3600, *, waits: bool = True) -> float:
    """Return the time without movement while the processes seem to wait for each other."""
    watch = Stillness(0.0, 1000.0)
    for now in range(seconds + 1):
        watch.look(float(now), 1000.0 + now, _after(now, each_second), waits=waits)
    return watch.still


def test_the_cpu_of_those_who_wait_for_each_other_is_no_progress() -> None:
    """A loop of sched_yield like vLLM's was measured: it uses a core and takes one page fault in a minute."""
    spinning = ProcessReadings(cpu=8.0, faults=0)
    assert _waited(spinning) == 3600
    assert _waited(spinning, waits=False) == 0


@pytest.mark.parametrize(
    "moving",
    [
        ProcessReadings(cpu=1.0, faults=10_000),  # torch.compile of small models: 5,000 to 22,000 a second, with seconds of next to none
        ProcessReadings(cpu=1.0, read=200 << 10),
        ProcessReadings(cpu=1.0, mapped=MIB),
        ProcessReadings(cpu=1.0, resident=MIB),
        ProcessReadings(cpu=1.0, gpu=4 * MIB),
        ProcessReadings(cpu=1.0, news=1),
    ],
)
def test_who_compiles_or_loads_while_another_waits_gets_on(moving: ProcessReadings) -> None:
    assert _waited(moving) < 15


def test_page_faults_alone_are_what_pollers_do_too() -> None:
    assert _waited(ProcessReadings(faults=1000), waits=False) == 3600


def test_cpu_counts_again_once_nobody_waits() -> None:
    watch = Stillness(0.0, 0.0)
    for now in range(100):
        watch.look(float(now), 0.0, ProcessReadings(cpu=float(now), processes=1), waits=True)
    assert watch.still == 99
    assert watch.look(100.0, 0.0, ProcessReadings(cpu=100.0, processes=1))


@pytest.mark.parametrize("line", [LINE.format(60), OLD_LINE])
@pytest.mark.parametrize("cut", [1000, 100, 7, 1])
def test_a_worker_that_does_not_answer_is_heard_of_however_the_line_is_cut(line: str, cut: int) -> None:
    waits = CommunicationWait()
    data = line.encode()
    for at in range(0, len(data), cut):
        waits.read_output(data[at : at + cut], 100.0)
    assert "repeatedly" in waits.signs(220.0, None)[0]
    assert waits.signs(226.0, None) == (), "a minute later it should have been said again"
    waits.read_output(b"\n" * 300, 500.0)
    assert waits.signs(501.0, None) == (), "a line is heard once"


def test_a_shorter_interval_is_waited_for_less_long() -> None:
    """The interval is VLLM_RINGBUFFER_WARNING_INTERVAL."""
    waits = CommunicationWait()
    waits.read_output(LINE.format(5).encode(), 100.0)
    assert waits.signs(114.0, None)
    assert not waits.signs(116.0, None)


def test_cards_that_are_all_busy_are_a_sign_while_that_is_known() -> None:
    waits = CommunicationWait()
    assert waits.signs(0.0, 1.0) == ("every GPU in use is 100% busy",)
    assert waits.signs(0.0, 0.94) == ()
    assert waits.signs(0.0, None) == ()


SIZES = (400 * MIB, 300 * MIB, 300 * MIB)


def _load(workers: int, *, tell: bool = True, called: bool = False, each_second: int = 10 * MIB, seconds: int = 50) -> Checkpoint:
    """Simulate workers that map one whole file after another and unmap it."""
    checkpoint = Checkpoint(SIZES)
    libraries = 210 * MIB
    for now in range(seconds + 1):
        got = now * each_second
        done = 0 if got < SIZES[0] else 1 if got < sum(SIZES[:2]) else 2
        here = got - sum(SIZES[:done])
        figures = {"called": got, "mapped": libraries} if called else {"mapped": libraries + here}
        processes = [_process(number, **figures) for number in range(workers)]
        api_server = _process(99, mapped=libraries, called=now * 1000)
        checkpoint.look(float(now), [*processes, api_server], loading=True, done=done if tell else 0, of=3 if tell else 0)
    return checkpoint


@pytest.mark.parametrize("workers", [1, 8])
@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("tell", [False, True])
def test_each_worker_reads_it_all_by_whatever_way(workers: int, called: bool, tell: bool) -> None:  # noqa: FBT001 - a table
    progress = _load(workers, called=called, tell=tell).look(50.0, [], loading=True)
    assert progress is not None
    assert progress.total == 1000 * MIB
    assert abs(progress.read - 500 * MIB) <= 10 * MIB
    assert progress.rate == pytest.approx(10 * MIB, rel=0.1)
    assert progress.left == pytest.approx(50, rel=0.2)


def test_the_log_corrects_what_workers_skip_or_touch_twice() -> None:
    checkpoint = Checkpoint(SIZES)
    checkpoint.look(0.0, [_process(mapped=0)], loading=True)
    skipped = checkpoint.look(1.0, [_process(mapped=100 * MIB)], loading=True, done=1, of=3)
    assert skipped is not None
    assert skipped.read == 400 * MIB
    twice = checkpoint.look(2.0, [_process(mapped=2000 * MIB)], loading=True, done=1, of=3)
    assert twice is not None
    assert twice.read == 700 * MIB


def test_a_stalled_disk_changes_the_rate_slowly_and_one_that_stays_so_has_no_end() -> None:
    checkpoint = _load(1)
    stalled = [_process(0, mapped=210 * MIB + 100 * MIB)]
    for now in range(51, 60):
        progress = checkpoint.look(float(now), stalled, loading=True, done=1, of=3)
    assert progress is not None
    assert progress.left is not None
    assert progress.left < 70
    for now in range(60, 130):
        progress = checkpoint.look(float(now), stalled, loading=True, done=1, of=3)
    assert progress is not None
    assert (progress.rate, progress.left) == (0.0, None)


def test_what_the_loader_counts_is_the_progress_whatever_was_estimated_before() -> None:
    checkpoint = _load(1, each_second=50 * MIB, seconds=10)
    assert checkpoint.count(11.0, 0, 990 * MIB) == LoadProgress(0, 990 * MIB, counted=True)
    assert checkpoint.count(21.0, 90 * MIB, 990 * MIB) == LoadProgress(90 * MIB, 990 * MIB, 9 * MIB, 100, counted=True)


def test_what_is_mapped_before_is_not_the_model() -> None:
    checkpoint = Checkpoint(SIZES)
    assert checkpoint.look(0.0, [_process(mapped=0)], loading=False) is None
    assert checkpoint.look(1.0, [_process(mapped=210 * MIB)], loading=False) is None
    progress = checkpoint.look(2.0, [_process(mapped=220 * MIB)], loading=True)
    assert progress is not None
    assert progress.read == 10 * MIB


def test_nothing_is_said_without_files() -> None:
    assert Checkpoint(()).look(0.0, [], loading=True) is None
