"""`vllm-safe drill` on the command line: its refusals and its output. No hog is started."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from vllm_safe.cli.main import main
from vllm_safe.common.errors import Failure
from vllm_safe.common.sizes import GIB
from vllm_safe.drill import hog_unit
from vllm_safe.drill.drill_decision import DrillSamples, Hog
from vllm_safe.drill.drill_run import DrillProgress
from vllm_safe.drill.login_probes import GAP, LOGIN, ProbeSample
from vllm_safe.host.host_facts import Host, SwapArea

HOST = Host(
    memory=16 * GIB,
    memory_available=14 * GIB,
    swaps=(SwapArea("/swapfile", "file", 128 * GIB, 0),),
    cgroup2=True,
    controllers=frozenset({"memory"}),
    cpus=2,
)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("vllm_safe.cli.drill.read_host", lambda: HOST)
    monkeypatch.setattr("vllm_safe.drill.drill_checks.parse_stall_share", lambda *_: 0.0)
    monkeypatch.setattr("vllm_safe.common.run_lock.RUN", tmp_path)
    monkeypatch.setattr("vllm_safe.cli.drill.prepare_steps", lambda *_: ())
    monkeypatch.setattr("vllm_safe.cli.drill.guard_steps", lambda *_: ())
    monkeypatch.setattr(hog_unit, "CGROUP", tmp_path / "vllm.slice")


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text("models:\n  x:\n    command: [/bin/sh]\n    limits: {memory_max: 1G}\n  y:\n    command: [/bin/sh]\n    port: 8001\n")
    return str(path)


def measured(*seconds: float) -> DrillSamples:
    return DrillSamples([*(ProbeSample(0.0, LOGIN, value) for value in seconds), ProbeSample(0.0, GAP, 0.1)])


def run_with(monkeypatch: pytest.MonkeyPatch, *seconds: float, **course: float) -> list[Hog]:
    hogs = []

    def run(_step: object, hog: Hog, length: float, _show: object) -> DrillProgress:
        hogs.append(hog)
        done = DrillProgress(length, measured(0.1), measured(*seconds), GIB, GIB, pages=123.4, touched=7404, full=length, recovered=2.0)
        for name, value in course.items():
            setattr(done, name, value)
        return done

    monkeypatch.setattr("vllm_safe.cli.drill.run_drill", run)
    return hogs


def refused(capsys: pytest.CaptureFixture[str], config: str) -> str:
    assert main(["drill", "--config", config]) == 2
    out, err = capsys.readouterr()
    assert not out
    return err


def test_a_drill_that_passes(config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run_with(monkeypatch, 0.1, 0.2)
    assert main(["drill", "--config", config]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "PASS"
    assert max(map(len, lines)) <= 80


def test_a_drill_that_fails_says_which_bound(config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run_with(monkeypatch, *[0.1] * 99, 11.0)
    assert main(["drill", "--config", config, "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert (answer["result"], answer["failed"]) == ("FAIL", ["login: worst"])
    assert answer["hog"]["ram"] == GIB


def test_a_hog_that_was_killed_fails_the_drill(config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard worked as designed, but the model would have been killed."""
    run_with(monkeypatch, 0.1, full=40.0, since=100.0, until=140.0, ended=55.0)
    assert main(["drill", "--config", config]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "FAIL: time that the hog lived"
    assert "It was killed after 55 s, as a model would have been. See:" in lines
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_in_order(
    number: signal.Signals, config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []
    before = signal.getsignal(number)

    def run(*_: object) -> DrillProgress:
        try:
            os.kill(os.getpid(), number)
            time.sleep(60)
        finally:
            events.append("the hog is stopped")
        raise AssertionError

    monkeypatch.setattr("vllm_safe.cli.drill.run_drill", run)
    assert main(["drill", "--config", config]) == 130
    assert events == ["the hog is stopped"]
    assert "interrupted" in capsys.readouterr().err
    assert signal.getsignal(number) is before


def test_the_hog_has_the_limits_of_the_model(config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    hogs = run_with(monkeypatch, 0.1)
    assert [main(["drill", "--config", config, *words]) for words in ([], ["--model", "x"])] == [0, 0]
    assert hogs[0].size > hogs[1].size
    assert hogs[1].full == GIB * 3 // 4
    assert main(["drill", "--config", config, "--model", "z"]) == 2
    assert "there is no model z" in capsys.readouterr().err


def test_only_root_may_and_anybody_may_ask_what_would_be_done(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 65534)
    assert "root" in refused(capsys, config)
    assert main(["drill", "--config", config, "--dry-run", "--model", "x"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("would run systemd-run ")
    assert all(
        word in out
        for word in (f"MemoryMax={GIB} ", "IOSchedulingClass=best-effort ", "OOMScoreAdjust=1000 ", "User=vllm ", "RuntimeMaxSec=210 ")
    )
    assert all(f"{word}=vllm-safe-guard.service vllm-safe-tunables.service" in out for word in ("Wants", "After"))


def test_what_keeps_a_drill_from_starting(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = tmp_path / "vllm.slice/vllm@x.service"
    model.mkdir(parents=True)
    (model / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    assert "the drill was not started: vllm@x.service is running" in refused(capsys, config)
    (model / "cgroup.events").write_text("populated 0\nfrozen 0\n")
    with monkeypatch.context() as short:
        short.setattr("vllm_safe.cli.drill.read_host", lambda: replace(HOST, memory_available=GIB))
        assert "the drill was not started: not enough memory is free: 1.0 GiB available" in refused(capsys, config)
    with monkeypatch.context() as short:
        short.setattr("vllm_safe.drill.drill_checks.parse_stall_share", lambda *_: 0.5)
        assert "the drill was not started: tasks waited for memory in 50% of the last ten seconds" in refused(capsys, config)
    monkeypatch.setattr("vllm_safe.cli.drill.read_host", lambda: Host(memory=GIB, cgroup2=True, controllers=frozenset({"memory"})))
    assert "the swapfile /swapfile is not on" in refused(capsys, config)
    monkeypatch.setattr("vllm_safe.cli.drill.read_host", lambda: Host(memory=GIB))
    assert "cgroup v2" in refused(capsys, config)


def test_two_at_once_are_one_too_many(config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    codes = []

    def run(*_: object) -> DrillProgress:
        codes.append(main(["drill", "--config", config]))
        raise Failure("enough")

    monkeypatch.setattr("vllm_safe.cli.drill.run_drill", run)
    assert main(["drill", "--config", config]) == 1
    assert codes == [2]
    assert "another one is running" in capsys.readouterr().err


def test_it_is_refused_for_the_limits_of_the_model_that_it_is_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of two models one has too little memory for any program. In the second case the section `limits` has."""
    run_with(monkeypatch, 0.1)
    tight = "memory_max: 64M"
    for section, own, refused_for in (("{}", f"{{{tight}}}", "x"), (f"{{{tight}}}", "{memory_max: 1G}", None)):
        path = tmp_path / "config.yaml"
        path.write_text(
            f"limits: {section}\nmodels:\n  x: {{command: [/bin/sh], limits: {own}}}\n  y: {{command: [/bin/sh], port: 8001}}\n"
        )
        assert main(["drill", "--config", str(path), "--model", "x"]) == (2 if refused_for else 0)
        err = capsys.readouterr().err
        assert ("64.0 MiB of 16.0 GiB RAM would be left for x" in err) is bool(refused_for)
