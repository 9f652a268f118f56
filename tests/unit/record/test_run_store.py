"""The files of the recorder, written and read: also after power cuts, on full disks and in long runs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.builders.runs import BEGUN, RUN, make_run, write_run
from vllm_safe.common.errors import Failure
from vllm_safe.contract.recorded_run import Event, Run, Sample
from vllm_safe.record import run_store
from vllm_safe.record.json_lines import CHUNK, Lines, read_lines
from vllm_safe.record.run_reader import list_runs, read_run
from vllm_safe.record.run_store import MOST_RUNS, RunStore


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


@pytest.mark.parametrize("gpus", [0, 8])
def test_what_is_written_is_what_is_read(tmp_path: Path, gpus: int) -> None:
    run = make_run(gpus=gpus, end={"cause": "stopped", "result": "success", "memory_events": {"oom_kill": 1}})
    write_run(run, tmp_path)
    back = read_run("qwen72b", RUN, tmp_path)
    assert back.start == run.start
    assert back.events == run.events
    assert back.end == run.end
    assert back.log == run.log
    assert [sample._replace(gpus=()) for sample in back.samples] == [rounded(sample) for sample in run.samples]
    assert [len(sample.gpus) for sample in back.samples] == [gpus] * len(run.samples)
    assert back.samples[-1].gpus == run.samples[-1].gpus


def rounded(sample: Sample) -> Sample:
    values = {key: round(value, 4) if isinstance(value, float) else value for key, value in sample._asdict().items()}
    return Sample(**values | {"gpus": (), "disk_read": int(sample.disk_read or 0), "disk_write": int(sample.disk_write or 0)})


def test_a_run_without_an_end_has_none(tmp_path: Path) -> None:
    write_run(make_run(), tmp_path)
    assert read_run("qwen72b", RUN, tmp_path).end is None


def test_a_torn_line_is_left_out_and_what_follows_it_is_not(tmp_path: Path) -> None:
    """A power cut leaves the beginning of a line, followed by the previous newlines or by blocks of zeros."""
    folder = write_run(make_run(seconds=10), tmp_path)
    file = folder / "samples.0.jsonl"
    file.write_bytes(file.read_bytes()[:-20] + b"\n" * 500)
    again = RunStore(str(tmp_path), "qwen72b", RUN)
    again.sample(Sample(BEGUN + 60, "ready", memory=7))
    assert again.flush() == ""
    samples = read_run("qwen72b", RUN, tmp_path).samples
    assert len(samples) == 10
    assert samples[-1] == Sample(BEGUN + 60, "ready", memory=7)
    file.write_bytes(file.read_bytes().rstrip(b"\n") + b"\n" + b"\0" * 4096)
    assert len(read_run("qwen72b", RUN, tmp_path).samples) == 10


def test_what_is_on_the_disk_before_it_is_closed_can_be_read(tmp_path: Path) -> None:
    """In a power cut, no file is closed."""
    kept = RunStore(str(tmp_path), "a", RUN)
    run = make_run(name="a")
    kept.start(run.start)
    for sample in run.samples:
        kept.sample(sample)
        assert kept.flush() == ""
    assert (tmp_path / "a" / RUN / "samples.0.jsonl").stat().st_size == CHUNK
    assert len(read_run("a", RUN, tmp_path).samples) == len(run.samples)
    kept.close()
    assert (tmp_path / "a" / RUN / "samples.0.jsonl").stat().st_size < CHUNK


def test_a_recorder_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    first = RunStore(str(tmp_path), "a", RUN)
    first.start(make_run(name="a").start)
    first.event(Event(1.0, "start", "one"))
    first.flush()  # then the recorder is killed
    assert run_store.open_run(str(tmp_path), "a", "1a2b3c4d" + "0" * 24) == RUN
    assert run_store.open_run(str(tmp_path), "a", "ffffffff" + "0" * 24) is None
    second = RunStore(str(tmp_path), "a", RUN)
    second.event(Event(2.0, "phase", "two"))
    second.end(make_run(end={}).end)  # type: ignore[arg-type]
    second.close()
    assert [event.text for event in read_run("a", RUN, tmp_path).events] == ["one", "two"]
    assert run_store.open_run(str(tmp_path), "a", "1a2b3c4d" + "0" * 24) is None


def test_a_run_of_three_days_keeps_its_beginning_and_its_end_in_5_mb(tmp_path: Path) -> None:
    run = make_run(name="a", gpus=8, seconds=10)
    kept = RunStore(str(tmp_path), "a", RUN)
    kept.start(run.start)
    kept.log(("x" * 2000,) * 200)
    for number in range(25_000):
        kept.sample(run.samples[-1]._replace(time=BEGUN + 10 * number))
        kept.event(Event(BEGUN + number, "guard", "squeezed the model " * 5))
        if number % 100 == 0:
            assert kept.flush() == ""
            assert size_of(tmp_path / "a" / RUN) < 5_000_000
    kept.close()
    samples = read_run("a", RUN, tmp_path).samples
    assert samples[0].time == BEGUN
    assert samples[-1].time == BEGUN + 10 * 24_999
    assert samples[2000].time == BEGUN + 10 * 2000, "the beginning is whole"
    assert [sample.time for sample in samples] == sorted(sample.time for sample in samples)


def test_a_stream_goes_on_in_its_last_file(tmp_path: Path) -> None:
    for number in range(50):
        stream = Lines(str(tmp_path), "x", head=40, tail=30)
        stream.write(b"%09d\n" % number)
        if number % 2:
            stream.close()
    found = [int(line) for line in read_lines(str(tmp_path), "x", 1 << 20)]
    assert found[:4] == [0, 1, 2, 3], "the beginning is whole"
    assert found[-3:] == [47, 48, 49]
    assert len(found) <= 4 + 3 + 3
    assert found == sorted(found)


def test_only_the_last_runs_of_a_model_stay(tmp_path: Path) -> None:
    for number in range(MOST_RUNS + 5):
        write_run(make_run(name="a", run=f"20261123T2220{number:02}-1a2b3c4d", seconds=1), tmp_path)
    write_run(make_run(name="b", seconds=1), tmp_path)
    runs = list_runs("a", tmp_path)
    assert len(runs) == MOST_RUNS
    assert runs[0] == "20261123T222024-1a2b3c4d"
    assert runs[-1] == "20261123T222005-1a2b3c4d"
    assert list_runs("b", tmp_path) == (RUN,)


def test_a_folder_whose_name_is_no_time_puts_no_run_off() -> None:
    assert run_store.run_id(BEGUN, "1a2b3c4d" * 4, ["20269999T999999-00000000"]) == run_store.run_id(BEGUN, "1a2b3c4d" * 4)


def test_what_is_no_run_is_neither_listed_nor_removed(tmp_path: Path) -> None:
    (tmp_path / "a" / "notes").mkdir(parents=True)
    assert list_runs("a", tmp_path) == ()
    assert list_runs("nobody", tmp_path) == ()


@pytest.mark.parametrize("name", ["..", "a/b", "", "."])
def test_a_name_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    with pytest.raises(Failure, match="invalid model name"):
        list_runs(name, tmp_path)


@pytest.mark.parametrize("run", ["..", "1", "20261123T222048-1a2b3c4d/../x"])
def test_a_run_that_is_none_is_said(tmp_path: Path, run: str) -> None:
    with pytest.raises(Failure, match="has no run"):
        read_run("a", run, tmp_path)


def test_a_run_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="no such file"):
        read_run("a", RUN, tmp_path)


def test_a_run_without_a_beginning_is_said(tmp_path: Path) -> None:
    (tmp_path / "a" / RUN).mkdir(parents=True)
    with pytest.raises(Failure, match=r"start\.json"):
        read_run("a", RUN, tmp_path)
    assert list_runs("a", tmp_path) == (), "there is nothing to be seen of it"


def _full(monkeypatch: pytest.MonkeyPatch, full: list[bool]) -> None:
    real = os.pwrite

    def pwrite(handle: int, data: bytes, offset: int) -> int:
        if full[0] and offset + len(data) > os.fstat(handle).st_size:
            raise OSError(28, "No space left on device")
        return real(handle, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)


def test_a_full_disk_loses_nothing_when_it_has_room_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = [True]
    _full(monkeypatch, full)
    kept = RunStore(str(tmp_path), "a", RUN)
    run = make_run(name="a")
    kept.start(run.start)
    for sample in run.samples:
        kept.sample(sample)
        assert "No space left" in kept.flush()
    full[0] = False
    assert kept.flush() == ""
    assert len(read_run("a", RUN, tmp_path).samples) == len(run.samples)


def test_a_disk_that_stays_full_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = [True]
    _full(monkeypatch, full)
    kept = RunStore(str(tmp_path), "a", RUN)
    kept.start(make_run(name="a").start)
    for number in range(3000):
        kept.sample(make_run(seconds=1).samples[0]._replace(time=BEGUN + number))
        kept.flush()
    assert len(kept._held["samples"]) <= run_store._HELD_MOST
    full[0] = False
    kept.flush()
    samples = read_run("a", RUN, tmp_path).samples
    assert samples[-1].time == BEGUN + 2999
    assert samples[0].time > BEGUN


def test_older_runs_make_room_but_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        write_run(make_run(name="a", run=f"20261123T21000{number}-1a2b3c4d", seconds=1), tmp_path)
    full = [True]
    _full(monkeypatch, full)
    kept = RunStore(str(tmp_path), "a", RUN)
    kept.start(make_run(name="a").start)
    assert "No space left" in kept.flush()
    assert list_runs("a", tmp_path) == ("20261123T210004-1a2b3c4d",)


def test_arguments_without_end_do_not_fill_the_disk(tmp_path: Path) -> None:
    write_run(make_run(start={"args": {"huge": "x" * 10_000_000}}), tmp_path)
    assert read_run("qwen72b", RUN, tmp_path).start.args == {}


def test_a_newer_version_may_add_fields(tmp_path: Path) -> None:
    folder = write_run(make_run(seconds=1), tmp_path)
    with (folder / "samples.0.jsonl").open("ab") as file:
        file.write((json.dumps([BEGUN + 9, "ready", *[None] * 60, "new"]) + "\n").encode())
    assert read_run("qwen72b", RUN, tmp_path).samples[-1] == Sample(BEGUN + 9, "ready")


def test_nobody_else_reads_what_a_model_printed(tmp_path: Path) -> None:
    folder = write_run(make_run(end={}), tmp_path)
    assert {path.stat().st_mode & 0o007 for path in folder.iterdir()} == {0}
    assert folder.stat().st_mode & 0o007 == 0


def test_the_log_is_only_the_last_one(tmp_path: Path) -> None:
    kept = run_store.RunStore(str(tmp_path), "qwen72b", RUN)
    kept.start(make_run().start)
    for lines in (("long", "x" * 40_000, "lines"), ("short",)):
        kept.log(lines)
        assert kept.flush() == ""
        assert read_run("qwen72b", RUN, tmp_path).log == lines
    again = run_store.RunStore(str(tmp_path), "qwen72b", RUN)  # the first recorder was killed
    again.log(("shorter",))
    assert again.close() == ""
    assert (tmp_path / "qwen72b" / RUN / "log.txt").read_bytes() == b"shorter\n"


def test_the_log_is_lines(tmp_path: Path) -> None:
    run = make_run(log=("a\nb", "c\x85d", "é\udc80"))
    write_run(run, tmp_path)
    assert read_run("qwen72b", RUN, tmp_path).log == ("a b", "c d", "é?")


def test_an_empty_run_can_be_read(tmp_path: Path) -> None:
    start = make_run().start
    write_run(Run(start), tmp_path)
    assert read_run("qwen72b", RUN, tmp_path) == Run(start)
