"""What `vllm-safe check` says of whole machines: the command itself, with trees of /proc and /sys and a libnvidia-ml.so of our own.

After an intended change: GOLDEN_UPDATE=1 python -m pytest tests/unit/check/test_doctor.py, then read the diff of tests/golden/check.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.builders.rig_cases import RIG_CASES
from tests.builders.rigs import FakeRig, build_rig
from tests.builders.situations import situation_of
from vllm_safe.check import check_facts, inspection
from vllm_safe.cli import check as check_command
from vllm_safe.cli.main import main
from vllm_safe.config.settings import Config
from vllm_safe.decide.limits import Budget
from vllm_safe.decide.plan_inputs import planned_server
from vllm_safe.decide.start_checks import Situation
from vllm_safe.driver.card_facts import NvmlCard
from vllm_safe.host.host_facts import Host
from vllm_safe.host.start_facts import StartFacts
from vllm_safe.models.model_files import ModelFiles
from vllm_safe.plan.config_json import parse_model_config
from vllm_safe.plan.headers_facts import StoredModel
from vllm_safe.plan.plan_facts import PlanFacts, describe_card
from vllm_safe.plan.serving import read_serving
from vllm_safe.record.kill_evidence import JournalLine

GOLDEN = Path(__file__).parents[2] / "golden/check"
NOW = 1_795_900_000.0

Examine = Callable[[FakeRig, str], str]


@pytest.fixture
def examine(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Examine:
    """Return a function that prints what the command says of a machine, on which the rest of the package is in order."""
    none = tmp_path / "none"
    none.mkdir()
    (none / "libnvidia-ml.so.1").write_text("no library: the loader refuses it, and looks for no other\n")

    def run(rig: FakeRig, *options: str) -> str:
        root, answers = build_rig(rig, tmp_path)
        config = tmp_path / "config.yaml"
        config.write_text(rig.config)

        def journal(_since: float, grep: str = "") -> tuple[list[JournalLine], bool]:
            words = grep.split("|")
            lines = [JournalLine(NOW - ago, 1.0, True, text) for ago, text in rig.journal]  # noqa: FBT003 - a field of a tuple
            return [line for line in lines if any(word in line.text for word in words)], True

        def situation(config: Config, host: Host, _budget: Budget, name: str, cards: tuple[NvmlCard, ...]) -> Situation:
            files = ModelFiles(Path("/srv/models", name), present=True)
            units = {f"vllm@{name}.service": {"TemporaryFileSystem": "/dev/shm:mode=1777,nosuid,nodev,size=50%"}}  # noqa: S108 - of the unit
            at = situation_of(config, host, name, StartFacts(server=True, model=files, swap_file="/swapfile", units=units))
            if "num_hidden_layers" not in rig.model:
                return at
            stored = StoredModel(parse_model_config(rig.model, "config.json"))
            answering = tuple(describe_card(card, card.used) for card in cards if card.memory)
            return replace(at, plan=PlanFacts(stored, read_serving(planned_server(name, "", at.server).args), answering))

        monkeypatch.setenv("FAKE_NVML", str(answers))
        monkeypatch.setenv("LD_LIBRARY_PATH", str(library if rig.driver else none))
        monkeypatch.setattr(check_command, "ROOT", root)
        monkeypatch.setattr(check_facts, "read_journal", journal)
        monkeypatch.setattr(check_facts, "has_compiler", lambda: True)
        monkeypatch.setattr(check_facts, "has_headers", lambda: True)
        monkeypatch.setattr(time, "time", lambda: NOW)
        monkeypatch.setattr(inspection, "show_properties", lambda *_: {})
        monkeypatch.setattr(inspection, "admin_arguments", lambda: None)
        monkeypatch.setattr(inspection, "decide_swap", lambda *_: ())
        monkeypatch.setattr(inspection, "read_situation", situation)
        monkeypatch.setattr(inspection, "read_model_json", lambda *_: rig.model)
        capsys.readouterr()
        main(["check", *options, "--config", str(config)])
        printed = capsys.readouterr()
        assert printed.err == ""
        return printed.out

    return run


@pytest.mark.parametrize("name", RIG_CASES)
def test_machines(name: str, examine: Examine) -> None:
    got, expected = examine(RIG_CASES[name]), GOLDEN / f"{name}.txt"
    if os.environ.get("GOLDEN_UPDATE"):
        expected.write_text(got)
    assert got == expected.read_text()


def test_no_golden_is_left_over() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(RIG_CASES)


def test_of_one_model_it_says_what_it_says_of_all(examine: Examine) -> None:
    rig = RIG_CASES["plan-machine"]
    two = replace(rig, config=rig.config + "  other: {command: [/bin/true], port: 9000}\n")
    assert examine(two, "qwen72b") == (GOLDEN / "plan-machine.txt").read_text()


def test_json_has_the_same_lines(examine: Examine) -> None:
    found = json.loads(examine(RIG_CASES["plan-machine"], "--json"))
    text = (GOLDEN / "plan-machine.txt").read_text()
    assert list(found) == ["this machine", "qwen72b"]
    assert all(f"  {row['level']}  {row['what']}\n" in text for rows in found.values() for row in rows)
