"""`vllm-safe apply` on the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.builders.fake_nvml import tell_cards
from vllm_safe.apply.start_steps import WriteLaunch
from vllm_safe.cli.main import main
from vllm_safe.common.errors import Failure
from vllm_safe.contract.launch_file import Launch
from vllm_safe.host.start_facts import Starts, boot_clock
from vllm_safe.tunables.tunable_facts import LRU_GEN

NOT_ROOT = 65534


@pytest.fixture(autouse=True)
def no_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text("swap: {size: none}\nmodels:\n  x:\n    command: [/bin/sh]\n")
    return str(path)


def test_a_dry_run_says_each_step_and_needs_no_root(
    config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: NOT_ROOT)
    assert main(["apply", "x", "--dry-run", "--config", config]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("would ") for line in lines)
    assert any("MemoryMax=" in line and "vllm@x.service" in line for line in lines)
    assert lines[-1].startswith("would write /run/vllm-safe/launch/x.json (root:vllm 0640)")


def test_without_a_name_nothing_of_a_model_is_prepared(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["apply", "--dry-run", "--config", config]) == 0
    out = capsys.readouterr().out
    assert "MemoryMin=" in out
    assert "launch" not in out


def test_only_root_may_apply(config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: NOT_ROOT)
    assert main(["apply", "--config", config]) == 2
    assert "root" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["models: {x: {command: [/bin/sh], prot: 1}}\n", "\t", "models: {y: {command: [/bin/sh]}}\n", None])
def test_what_is_wrong_with_the_configuration_becomes_a_refusal(
    tmp_path: Path, text: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    if text is not None:
        path.write_text(text)
    assert main(["apply", "x", "--dry-run", "--config", str(path)]) == 0
    assert capsys.readouterr().out.startswith("would write /run/vllm-safe/launch/x.json (root:vllm 0640), refusing the start: ")


def test_at_boot_a_mistake_in_the_configuration_is_misuse_and_the_system_is_protected_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("protekt: {}\n")
    assert main(["apply", "--dry-run", "--config", str(path)]) == 2
    out, err = capsys.readouterr()
    assert "protekt" in err
    assert out.count(" MemoryMin=") == 3
    assert "vllm.slice" not in out


@pytest.mark.parametrize("name", ["../x", "a/b", "", "x\n", "x y", "x\0"])
def test_a_name_that_could_lead_elsewhere_is_refused(name: str, config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["apply", "--dry-run", "--config", config, "--", name]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["-x", "..", "a\\x20b", "\\x25n", "x@y"])
def test_an_instance_that_is_no_name_of_a_model_is_refused_by_its_unit(name: str, config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["apply", "--dry-run", "--config", config, "--", name]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"would write /run/vllm-safe/launch/{name}.json (root:vllm 0640), refusing the start: there is no model {name}")


def test_undo_needs_no_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["apply", "--undo", "--dry-run", "--config", "/nowhere.yaml"]) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("error", [Failure("no bus", hint="wait"), ZeroDivisionError("an internal error")])
def test_a_preparation_that_fails_itself_is_said_by_the_unit_and_tried_again(
    error: Exception, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[tuple[str, bool]] = []

    def fail(*_: object) -> None:
        raise error

    def refuse(_name: str, what: str, _hint: str, *, again: bool, **_: object) -> tuple[()]:
        refused.append((what, again))
        return ()

    monkeypatch.setattr("vllm_safe.cli.apply.prepare_steps", fail)
    monkeypatch.setattr("vllm_safe.cli.apply.refusal_steps", refuse)
    assert main(["apply", "x", "--dry-run", "--config", config]) == 0
    assert [(str(error) in what, again) for what, again in refused] == [(True, True)]


@pytest.mark.parametrize(("restarts", "again"), [(1, True), (4, False)])
def test_what_may_work_the_next_time_is_tried_no_more_often_than_any_other_start(
    restarts: int,
    again: bool,  # noqa: FBT001 -- a row of the table
    config: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise Failure("no bus")

    now = boot_clock()
    monkeypatch.setattr("vllm_safe.cli.apply.prepare_steps", fail)
    monkeypatch.setattr("vllm_safe.cli.apply.read_starts", lambda _: Starts(restarts - 1, (now,) * (restarts - 1)))
    monkeypatch.setattr("vllm_safe.cli.apply.show_properties", lambda *_: {"vllm@x.service": {"NRestarts": str(restarts)}})
    launches: list[Launch] = []

    def describe(step: WriteLaunch) -> str:
        launches.append(step.launch)
        return ""

    monkeypatch.setattr(WriteLaunch, "describe", describe)
    assert main(["apply", "x", "--dry-run", "--config", config]) == 0
    assert [launch.again for launch in launches] == [again]
    assert "would write /run/vllm-safe/starts/x" in capsys.readouterr().out


def test_the_tunables_are_set_and_taken_back_by_themselves(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm_safe.host.host_facts.read_tunables", lambda *_: {LRU_GEN: "0x0000"})
    assert main(["apply", "--tunables", "--dry-run", "--config", config]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "would wait until the kernel reclaims no memory, at most 30 s",
        "would write /run/vllm-safe/tunables (root:root 0644)",
        f"would set {LRU_GEN} to y",
    ]
    broken = tmp_path / "broken.yaml"
    broken.write_text("\t")
    assert main(["apply", "--tunables", "--undo", "--dry-run", "--config", str(broken)]) == 0
    assert capsys.readouterr().out == "nothing to do: already up to date\n"
    assert main(["apply", "--tunables", "--dry-run", "--config", str(broken)]) == 2


@pytest.fixture
def cards(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file with the state of two cards that NVML reports."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library))
    monkeypatch.setenv("FAKE_NVML", str(tmp_path / "told"))
    tell_cards(tmp_path / "told", "", "")
    return tmp_path / "told"


def test_the_power_limits_are_set_and_taken_back_by_themselves(
    config: str, cards: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["apply", "--power", "--dry-run", "--config", config]) == 0
    assert capsys.readouterr().out == "nothing to do: already up to date\n"
    limited = Path(config)
    limited.write_text(f"gpu: {{power_limit: 75%}}\n{limited.read_text()}")
    assert main(["apply", "--power", "--dry-run", "--config", config]) == 0
    card = "would set the power limit of GPU {} (NVIDIA GeForce RTX 3060) to 127.5 W"
    assert capsys.readouterr().out.splitlines() == ["would write /run/vllm-safe/power (root:root 0644)", card.format(0), card.format(1)]
    assert main(["show", "x", "--config", config]) == 0
    row = rf"GPU 1 \(NVIDIA GeForce RTX 3060\) +127.5 W \(default 170 W, now 170 W\) +{config}:1"
    assert re.search(row, capsys.readouterr().out)
    limited.write_text(limited.read_text().replace("75%", "50W"))
    said: list[str] = []
    monkeypatch.setattr("vllm_safe.cli.apply.notify", lambda **fields: said.append(fields["STATUS"]))
    assert main(["apply", "--power", "--config", config]) == 2
    words = "GPUs 0 and 1 (NVIDIA GeForce RTX 3060): gpu.power_limit 50 W is out of range; expected 100 W to 200 W"
    assert (said, words in capsys.readouterr().err) == ([words], True)
    assert main(["show", "x", "--config", config, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["Power limits while a model runs"]["not possible"]["value"] == words
    cards.unlink()
    assert main(["apply", "--power", "--config", config]) == 1
    assert "the power limits of the GPUs cannot be set: the NVIDIA driver does not answer (NVML error 9)" in capsys.readouterr().err
    limited.write_text("\t")
    assert main(["apply", "--power", "--undo", "--dry-run", "--config", config]) == 0
    assert capsys.readouterr().out == "nothing to do: already up to date\n"


def test_tunables_power_and_the_gateway_exclude_each_other(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["apply", "--tunables", "--power", "--config", config]) == 2
    assert "use only one of --tunables, --power and --gateway" in capsys.readouterr().err


def test_an_edited_power_limit_is_applied_before_the_next_start(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(config).write_text(f"gpu: {{power_limit: 75%}}\n{Path(config).read_text()}")
    assert main(["apply", "x", "--dry-run", "--config", config]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "would have vllm-safe-power.service reload its settings if it runs"


def test_the_sockets_of_models_on_demand_are_opened_by_themselves(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(config).write_text("models: {x: {command: [/bin/sh], port: 8001, on_demand: true}, y: {command: [/bin/sh]}}\n")
    assert main(["apply", "--gateway", "--dry-run", "--config", config]) == 0
    written, service, reload, settings, opened = capsys.readouterr().out.splitlines()
    assert "vllm-on-demand@x.socket.d" in written
    assert "vllm-on-demand@x.service.d" in service
    assert reload == "would reload systemd's unit files (daemon-reload)"
    assert settings == "would write /run/vllm-safe/gateway/gateway.json (root:vllm-gateway 0640)"
    assert opened.startswith("would start vllm-on-demand@x.socket, which listens on 127.0.0.1:8001")
    Path(config).write_text("\t")
    assert main(["apply", "--gateway", "--undo", "--dry-run", "--config", config]) == 0
    assert capsys.readouterr().out == "nothing to do: already up to date\n"
    assert main(["apply", "--gateway", "--dry-run", "--config", config]) == 2


def test_a_start_says_whether_it_makes_room(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(config).write_text("models: {x: {command: [/bin/sh], port: 8001, on_demand: true}}\n")
    assert main(["apply", "x", "--dry-run", "--config", config]) == 0
    assert "would stop no other model for x: there is room" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("option", ["--undo", "--tunables", "--power", "--gateway"])
def test_what_is_of_the_whole_machine_goes_without_a_name(option: str, config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["apply", option, "--config", config, "x"]) == 2
    assert "NAME" in capsys.readouterr().err
