"""The whole recorder on a root directory of its own: its files while events happen to a model and to the recorder."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from vllm_safe.contract.recorded_run import Gpu, Run
from vllm_safe.contract.state_file import State
from vllm_safe.power.power_facts import PowerNote
from vllm_safe.record import kill_evidence, recorder, run_recording
from vllm_safe.record.kill_evidence import JournalLine
from vllm_safe.record.recorder import Recorder
from vllm_safe.record.run_reader import list_runs, read_run
from vllm_safe.record.run_start import read_start

ONE, TWO = "1a2b3c4d" * 4, "5e6f7a8b" * 4
WALL = 1_795_472_448.0
GIB = 1 << 30


class World:
    """A machine in a directory, and a recorder on it."""

    def __init__(self, root: Path) -> None:
        self.root, self.runs = root, root / "runs"
        self.said: list[str] = []
        self.now, self.wall = 1000.0, WALL
        (root / "run/vllm-safe/state").mkdir(parents=True)
        self.begin_again()

    def begin_again(self) -> None:
        self.recorder = Recorder("demo", str(self.runs), str(self.root), self.said.append)

    def put(self, name: str, value: object) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value if isinstance(value, str) else json.dumps(value))

    def invoke(self, invocation: str) -> None:
        link = self.root / "run/systemd/units/invocation:vllm@demo.service"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        if invocation:
            link.symlink_to(invocation)

    def say(self, phase: str, run: str = ONE, **more: Any) -> None:  # noqa: ANN401
        state = State("demo", run, 7, self.wall, WALL, phase, self.wall, **more)
        self.put("run/vllm-safe/state/demo.json", state._asdict())

    def end(self, run: str = ONE, **more: object) -> None:
        self.put("run/vllm-safe/state/demo.end.json", {"time": self.wall, "run": run, "result": "exit-code"} | more)

    def pass_seconds(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now, self.wall = self.now + 1, self.wall + 1
            self.recorder.look(self.now, self.wall)

    def recorded(self) -> Run:
        return read_run("demo", list_runs("demo", self.runs)[0], self.runs)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(kill_evidence, "read_journal", lambda *_: ([], True))
    monkeypatch.setattr(kill_evidence, "AGAIN", 0.0)
    for module in (recorder, run_recording):
        monkeypatch.setattr(module, "unit_properties", lambda *_: {})
    return World(tmp_path)


def test_a_whole_run(world: World) -> None:
    world.pass_seconds(3)
    assert not world.runs.exists()
    world.invoke(ONE)
    world.pass_seconds(1)
    for phase in ("starting", "loading", "ready"):
        world.say(phase, log=("one", phase))
        world.pass_seconds(8)
    world.end(cause="exited", reason="the server ended by itself", memory_events={"oom_kill": 0})
    world.pass_seconds(3)
    run = world.recorded()
    assert run.start.run == "20261123T222052-1a2b3c4d"
    assert [event.text for event in run.events] == ["started", "starting", "loading", "ready"]
    assert run.log == ("one", "ready")
    assert run.end is not None
    assert (run.end.cause, run.end.result) == ("exited", "exit-code")
    assert len(run.samples) >= 24
    assert (world.runs / "demo" / run.start.run / "samples.0.jsonl").stat().st_size < 60_000, "what it did not need is given back"


def test_each_start_is_a_run_and_none_is_recorded_twice(world: World) -> None:
    for invocation in (ONE, TWO):
        world.invoke(invocation)
        world.pass_seconds(3)
        world.end(invocation)
        world.pass_seconds(10)
    world.begin_again()
    world.pass_seconds(3)
    assert [run[-8:] for run in list_runs("demo", world.runs)] == [TWO[:8], ONE[:8]]


def test_the_newest_run_is_the_last_that_was_started_whatever_the_clock_said(world: World) -> None:
    """A machine without a real-time clock boots with a time in the past; two starts may also be within a second."""
    invocations = [f"{number:08x}" * 4 for number in (9, 5, 7, 3, 1)]
    for invocation, wall in zip(invocations, (WALL, WALL, 86_400.0, WALL - 86_400, WALL + 86_400), strict=True):
        world.wall = wall - 1
        world.invoke(invocation)
        world.pass_seconds(1)
        world.end(invocation)
        world.pass_seconds(3)
    runs = list_runs("demo", world.runs)
    assert [run[-8:] for run in runs] == [invocation[:8] for invocation in reversed(invocations)]
    assert [run[:15] for run in runs] == ["20261124T222048", "20261123T222051", "20261123T222050", "20261123T222049", "20261123T222048"]
    assert read_run("demo", runs[2], world.runs).start.time == 86_400.0


def test_a_recorder_that_was_killed_goes_on(world: World) -> None:
    guard = "run/vllm-safe/guard/demo.jsonl"
    world.invoke(ONE)
    world.say("loading")
    world.pass_seconds(7)
    world.put(guard, json.dumps({"time": world.wall, "act": "freeze", "text": "frozen", "readings": {"a": 0.5, "b": "x"}}) + "\n")
    world.pass_seconds(7)
    before = world.recorded()
    world.begin_again()
    world.pass_seconds(7)
    with (world.root / guard).open("a") as file:
        file.write(json.dumps({"time": world.wall, "act": "thaw", "text": "thawed"}) + "\nnonsense\n")
    world.pass_seconds(7)
    run = world.recorded()
    assert len(list_runs("demo", world.runs)) == 1
    assert run.start == before.start
    assert [event.text for event in run.events if event.kind == "guard"] == ["frozen", "thawed"]
    assert next(event.data for event in run.events if event.kind == "guard") == {"act": "freeze", "readings": {"a": 0.5}}
    assert len([event for event in run.events if event.kind == "start"]) == 1
    assert len(run.samples) > len(before.samples)


def test_the_clock_may_be_set(world: World) -> None:
    world.invoke(ONE)
    world.say("loading")
    world.pass_seconds(5)
    world.wall -= 86_400 * 365
    world.pass_seconds(5)
    world.wall += 86_400 * 3650
    world.end()
    world.pass_seconds(5)
    assert len(list_runs("demo", world.runs)) == 1
    assert len(world.recorded().samples) >= 10
    assert world.recorded().end is not None


def test_what_an_earlier_start_left_is_not_this_ones(world: World) -> None:
    world.say("ready", run=TWO, log=("old",))
    world.end(TWO, cause="hang")
    world.invoke(ONE)
    world.pass_seconds(10)
    run = world.recorded()
    assert run.end is None
    assert run.samples[-1].phase == "waiting"
    assert run.log == ()


def test_an_end_that_systemd_does_not_know_of_is_a_lie(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def running(*names: str) -> dict[str, str]:
        asked.append(names)
        return {"SubState": "running", "InvocationID": ONE}

    monkeypatch.setattr(recorder, "unit_properties", running)
    world.invoke(ONE)
    world.end(cause="stopped")
    world.pass_seconds(20)
    assert world.recorded().end is None
    assert len(asked) == 1, "it is asked once about each lie"
    monkeypatch.setattr(recorder, "unit_properties", lambda *_: {"SubState": "stop-post", "InvocationID": ONE})
    world.end(cause="exited")
    world.pass_seconds(3)
    end = world.recorded().end
    assert end is not None
    assert end.cause == "exited"


def test_an_end_without_a_word_is_systemds(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {"Result": "oom-kill", "ExecMainCode": "2", "ExecMainStatus": "9"}
    monkeypatch.setattr(run_recording, "unit_properties", lambda *_: shown)
    world.put("sys/fs/cgroup/vllm.slice/vllm@demo.service/memory.events", "oom_kill 3\n")
    world.invoke(ONE)
    world.say("loading")
    world.pass_seconds(5)
    world.invoke("")
    world.pass_seconds(10)
    end = world.recorded().end
    assert end is not None
    assert (end.result, end.exit_code, end.exit_status) == ("oom-kill", "killed", "9")
    assert end.memory_events == {"oom_kill": 3}


def test_it_may_be_told_to_end_at_any_time(world: World) -> None:
    assert world.recorder.leave(world.now, world.wall)
    world.invoke(ONE)
    world.pass_seconds(3)
    assert not world.recorder.leave(world.now, world.wall), "the model runs: there may be more to write down"
    world.recorder.close()
    assert world.recorded().end is None
    world.begin_again()
    world.pass_seconds(3)
    world.invoke("")
    assert world.recorder.leave(world.now, world.wall)
    assert world.recorded().end is not None


def test_what_ended_while_there_was_no_recorder_has_its_end(world: World) -> None:
    world.put("proc/sys/kernel/random/boot_id", "this-boot\n")
    world.invoke(ONE)
    world.pass_seconds(3)
    world.end(cause="exited")
    world.invoke("")
    world.begin_again()
    world.recorder.catch_up(world.now, world.wall)
    end = world.recorded().end
    assert end is not None
    assert end.cause == "exited"
    assert len(list_runs("demo", world.runs)) == 1


SUMMARY = "oom-kill:constraint=CONSTRAINT_MEMCG,oom_memcg=/vllm.slice,task_memcg=/vllm.slice/vllm@demo.service,task=x,pid=7,uid=998"
KILLED = "Memory cgroup out of memory: Killed process 7 (x) total-vm:9kB, anon-rss:7kB"


@pytest.mark.parametrize(
    ("reason", "readings", "kinds"),
    [
        ("it ended (exit status 1)", [True], []),
        ("it ended (killed by SIGKILL)", [True, True], []),
        ("it ended (killed by SIGKILL)", [True, "late"], ["kernel-oom"]),
        ("it ended (killed by SIGKILL)", ["late"], ["kernel-oom"]),
        ("it ended (exit status 1)", [False, True], []),
        ("it ended (exit status 1)", [False, False], ["unread"]),
    ],
)
def test_a_journal_that_is_slow_is_read_twice_and_what_was_not_read_is_not_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, reason: str, readings: list[object], kinds: list[str]
) -> None:
    asked: list[float] = []

    def read(since: float) -> tuple[list[kill_evidence.JournalLine], bool]:
        asked.append(since)
        reading = readings[len(asked) - 1]
        lines = (
            [kill_evidence.JournalLine(world.wall, world.now, kernel=True, text=text) for text in (SUMMARY, KILLED)]
            if reading == "late"
            else []
        )
        return lines, bool(reading)

    monkeypatch.setattr(kill_evidence, "read_journal", read)
    world.invoke(ONE)
    world.pass_seconds(3)
    world.end(cause="exited", reason=reason)
    world.invoke("")
    world.pass_seconds(10)
    assert len(asked) == len(readings)
    assert all(WALL - 5 <= since <= world.wall for since in asked)
    assert [event.kind for event in world.recorded().events if event.kind in {"kernel-oom", "unread"}] == kinds


def test_in_a_container_the_boot_is_what_systemd_says(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container, the kernel's file shows the id of the host, or is hidden."""
    monkeypatch.setenv("BOOT_ID", "0123456789abcdef" * 2)
    world.put("proc/sys/kernel/random/boot_id", "the-machine-s\n")
    world.invoke(ONE)
    world.pass_seconds(3)
    world.end(cause="exited")
    world.invoke("")
    world.begin_again()
    world.recorder.catch_up(world.now, world.wall)
    assert world.recorded().end is not None
    assert world.recorded().start.boot == "01234567-89ab-cdef-0123-456789abcdef"


@pytest.mark.parametrize("asked_to_end", [False, True], ids=["it goes on", "it is asked to end"])
def test_a_start_that_was_over_before_it_was_seen_is_a_run(world: World, monkeypatch: pytest.MonkeyPatch, *, asked_to_end: bool) -> None:
    monkeypatch.setattr(recorder, "unit_properties", lambda *_: {"SubState": "failed", "InvocationID": ONE})
    world.pass_seconds(3)
    world.say("ended", cause="refused", reason="port 8000 is taken", log=("port 8000 is taken",))
    world.end(cause="refused", reason="port 8000 is taken")
    if asked_to_end:
        assert world.recorder.leave(world.now, world.wall)
    world.pass_seconds(5)
    run = world.recorded()
    assert len(list_runs("demo", world.runs)) == 1
    assert run.end is not None
    assert (run.end.cause, run.log, run.start.run[-8:]) == ("refused", ("port 8000 is taken",), ONE[:8])


def test_without_an_answer_of_systemd_it_asks_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[dict[str, str]] = [{}, {"SubState": "failed", "InvocationID": ONE}]
    monkeypatch.setattr(recorder, "unit_properties", lambda *_: answers[0] if len(answers) == 1 else answers.pop(0))
    world.end(cause="refused", reason="port 8000 is taken")
    world.pass_seconds(8)
    end = world.recorded().end
    assert end is not None
    assert end.cause == "refused"


def test_the_main_process_is_told_how_much_of_the_cards_is_in_use(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    class Cards:
        lost: frozenset[int] = frozenset()

        def ask(self, _now: float) -> tuple[Gpu, ...]:
            return () if world.now > 1005 else (Gpu(int(world.now - 1000) << 30, 11 << 30, 0.97), Gpu(1 << 30, 11 << 30, 0.0))

    monkeypatch.setattr("vllm_safe.record.nvml_usage.NvmlCards", Cards)
    (world.root / "proc/driver/nvidia/gpus/0000:01:00.0").mkdir(parents=True)
    told = world.root / "run/vllm-safe/gpus/demo"
    world.invoke(ONE)
    world.pass_seconds(2)  # the directory does not exist
    told.parent.mkdir()
    world.pass_seconds(3)
    # A GPU that does not answer changes nothing. A GPU without growing memory use is not the model's, so that its idleness does not count.
    assert (told.read_text(), told.stat().st_mode & 0o777) == (f"{6 << 30} 0.97\n", 0o644)
    world.end()
    world.invoke("")
    world.pass_seconds(9)
    assert not told.exists()


class Hot:
    """Two cards, of which the second is too hot each other second, and falls off the bus in the end."""

    def __init__(self) -> None:
        self.asked = 0
        self.lost: frozenset[int] = frozenset()

    def ask(self, _now: float) -> tuple[Gpu, ...]:
        self.asked += 1
        cool, hot = Gpu(GIB, 12 * GIB, 1.0, 160.0, 60, 0.0, 0.0, 0.0, 1, 3), Gpu(GIB, 12 * GIB, 1.0, 120.0, 91, 1.0, 0.0, 0.0, 1, 3)
        return (cool, Gpu(0, 0, 0.0) if self.lost else hot if self.asked % 2 else cool)


@pytest.fixture
def hot(world: World, monkeypatch: pytest.MonkeyPatch) -> Hot:
    cards = Hot()
    monkeypatch.setattr("vllm_safe.record.nvml_usage.NvmlCards", lambda: cards)
    for pci in ("0000:01:00.0", "0000:02:00.0"):
        world.put(f"proc/driver/nvidia/gpus/{pci}/information", "Model: \t\t NVIDIA GeForce RTX 3060\n")
    (world.root / "run/vllm-safe/gpus").mkdir()
    return cards


def test_cards_are_read_each_second_also_while_the_model_is_steady(world: World, hot: Hot) -> None:
    """A sample each ten seconds then has the share of its ten seconds. NVML's last answer of ten seconds ago would count as outdated."""
    world.put("run/vllm-safe/power", PowerNote("75%").to_json())
    world.invoke(ONE)
    world.say("ready")
    world.pass_seconds(100)
    assert hot.asked == 100
    assert world.recorded().start.host["power_limit"] == "75%"
    steady = [sample for sample in world.recorded().samples if sample.time > WALL + 60]
    assert 3 <= len(steady) <= 5
    assert [[gpu.heat for gpu in sample.gpus] for sample in steady] == [[0.0, 0.5]] * len(steady)
    assert {sample.gpus[1].temperature for sample in steady} == {91}
    told = world.root / "run/vllm-safe/gpus/demo:cards"
    assert json.loads(told.read_text())[0] == [GIB, 12 * GIB, 1, 160, 60, 0, 0, 0, 1, 3]
    assert told.stat().st_mode & 0o777 == 0o644
    world.end()
    world.invoke("")
    world.pass_seconds(9)
    assert not told.exists()


def test_a_card_that_nvml_reports_as_lost_is_an_event(world: World, hot: Hot) -> None:
    world.invoke(ONE)
    world.say("ready")
    world.pass_seconds(3)
    hot.lost = frozenset({1})
    world.pass_seconds(20)
    (event,) = [event for event in world.recorded().events if event.kind == "nvidia"]
    assert (event.time, event.text) == (WALL + 4, "GPU 1 has fallen off the bus, as NVML reports")
    assert event.data == {"kind": "lost", "pci": "0000:02:00", "own": None, "times": 1}


@pytest.mark.parametrize("found", ["systemd knows of another", "it was there when the recorder began"])
def test_an_end_of_another_start_is_no_run(world: World, monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    asked = []

    def last(*names: str) -> dict[str, str]:
        asked.append(names)
        return {"InvocationID": TWO if found == "systemd knows of another" else ONE}

    monkeypatch.setattr(recorder, "unit_properties", last)
    world.end()
    if found == "it was there when the recorder began":
        world.begin_again()
    world.pass_seconds(20)
    assert not world.runs.exists()
    assert len(asked) == (1 if found == "systemd knows of another" else 0), "it is asked once about each"


@pytest.mark.parametrize("after", ["a power cut", "nothing: it runs"])
def test_what_was_never_ended_gets_none(world: World, after: str) -> None:
    world.put("proc/sys/kernel/random/boot_id", "this-boot\n")
    world.invoke(ONE)
    world.pass_seconds(3)
    world.end(cause="stopped")
    if after == "a power cut":
        world.put("proc/sys/kernel/random/boot_id", "another-boot\n")
        world.invoke("")
    world.begin_again()
    world.recorder.catch_up(world.now, world.wall)
    assert world.recorded().end is None


def test_a_disk_that_is_full_is_said_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    real, full = os.mkdir, [True]

    def mkdir(path: str, mode: int = 0o777) -> None:
        if full[0]:
            raise OSError(28, "No space left on device")
        real(path, mode)

    world.invoke(ONE)
    monkeypatch.setattr(os, "mkdir", mkdir)
    world.pass_seconds(60)
    assert len(world.said) == 1
    assert "No space left" in world.said[0]
    full[0] = False
    world.pass_seconds(10)
    assert world.said[1:] == ["recording has resumed"]
    assert len(world.recorded().samples) > 60


def test_figures_for_prometheus_come_and_go(world: World) -> None:
    folder = world.root / "textfile"
    folder.mkdir()
    world.put("run/vllm-safe/launch/demo.json", {"textfile": f"{folder}/", "serve_file": "x", "serve_args": {}})
    world.invoke(ONE)
    world.pass_seconds(3)
    assert [path.name for path in folder.iterdir()] == ["vllm-safe-demo.prom"]
    world.end()
    world.pass_seconds(3)
    assert list(folder.iterdir()) == []
    assert world.said == []


def test_a_folder_that_cannot_be_written_is_said_once(world: World) -> None:
    world.put("run/vllm-safe/launch/demo.json", {"textfile": "/nowhere/at/all"})
    world.invoke(ONE)
    world.pass_seconds(60)
    assert len(world.said) == 1
    assert "ReadWritePaths=/nowhere/at/all" in world.said[0]


def test_what_a_run_begins_with(tmp_path: Path) -> None:
    unit = tmp_path / "unit"
    unit.mkdir()
    limits = {"memory.max": "1000", "memory.swap.max": "max", "cpu.weight": "10", "io.weight": "default 1", "pids.max": "4096"}
    for name, text in limits.items():
        (unit / name).write_text(f"{text}\n")
    args = {
        "max-num-batched-tokens": 2048,
        "tokenizer": "x",
        "api-key": "s3cret",
        "hf-token": "s3cret",
        "a": {"auth_token": "s3cret", "b": 1},
    }
    launch = {"serve_file": "/run/x", "serve_args": args, "health": "http://x/health", "restart": 2, "oom_score_adj": 1000}
    launch |= {"profile": "pcie-riser", "stall_timeout": 1800.0, "hang_timeout": "soon"}
    launch |= {"env": {"NCCL_P2P_DISABLE": "1", "VLLM_USE_FLASHINFER_SAMPLER": "0", "HOME": "/x", "HF_TOKEN": "s3cret"}}
    (tmp_path / "run/vllm-safe/launch").mkdir(parents=True)
    (tmp_path / "run/vllm-safe/launch/demo.json").write_text(json.dumps(launch))
    (tmp_path / "var/lib/vllm-safe/engine").mkdir(parents=True)
    (tmp_path / "var/lib/vllm-safe/engine/current").symlink_to("vllm-0.32.0")
    start = read_start("demo", "x", 5.0, str(unit), str(tmp_path))
    assert start.limits == {"memory_max": 1000, "cpu_weight": 10, "io_weight": 1, "tasks_max": 4096, "oom_score_adjust": 1000}
    assert start.args == {"max-num-batched-tokens": 2048, "tokenizer": "x", "a": {"b": 1}}
    assert (start.command, start.restart, start.health) == (False, 2, "http://x/health")
    assert start.versions["engine"] == "vllm-0.32.0"
    assert (start.profile, start.times) == ("pcie-riser", {"stall_timeout": 1800.0})
    assert start.env == {"NCCL_P2P_DISABLE": "1", "VLLM_USE_FLASHINFER_SAMPLER": "0"}


XID = "NVRM: Xid (PCI:0000:01:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."


@pytest.mark.parametrize(("cards", "cause", "asked"), [(True, "hang", 1), (True, "stopped", 0), (False, "hang", 0)])
def test_what_the_kernel_said_of_the_cards_in_the_whole_run_is_evidence(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    cards: bool,  # noqa: FBT001 - a table
    cause: str,
    asked: int,
) -> None:
    """The messages may be hours old, since a lost GPU may be noticed late. They are not read for a requested stop or without GPUs."""
    greps: list[tuple[float, str]] = []
    link = "pcieport 0000:00:02.0: AER: Correctable error message received from 0000:01:00.0"

    def read(since: float, grep: str = "") -> tuple[list[JournalLine], bool]:
        greps.extend([(since, grep)] if grep else [])
        lines = [JournalLine(WALL + 5, 1005.0, kernel=True, text=XID), JournalLine(WALL + 4, 1004.0, kernel=True, text=link)]
        return [line for line in lines if grep and re.search(grep, line.text)], True

    monkeypatch.setattr(kill_evidence, "read_journal", read)
    if cards:
        world.put("proc/driver/nvidia/gpus/0000:01:00.0/information", "Model: \t\t NVIDIA GeForce RTX 3060\n")
        monkeypatch.setattr("vllm_safe.record.nvml_usage.NvmlCards", lambda: None)
    world.invoke(ONE)
    world.pass_seconds(4000)
    world.end(cause=cause)
    world.pass_seconds(4)
    run = world.recorded()
    assert [event.data["kind"] for event in run.events if event.kind == "nvidia"] == ["link", "xid"] * asked
    assert len(greps) == 2 * asked
    assert all(since <= WALL for since, _ in greps)
    expected = [{"pci": "0000:01:00.0", "name": "NVIDIA GeForce RTX 3060", "lanes": 0, "bridges": []}] if cards else []
    assert (run.start.host["gpus"], run.start.host["cards"]) == (len(expected), expected)
