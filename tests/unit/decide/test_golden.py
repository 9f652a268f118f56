"""Golden directories: every decision for a configuration and a fake root, as text that a reader can check.

tests/golden/CASE has config.yaml, root/ (the files of /proc and /sys that are read), disk.json (the results of statvfs and of the swap
headers) and expected.txt. After an intended change: GOLDEN_UPDATE=1 python -m pytest tests/unit/decide/test_golden.py, then read the diff.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders.situations import situation_of
from vllm_safe.check.check_facts import Inspection
from vllm_safe.check.checks import check_machine
from vllm_safe.check.machine_facts import MachineFacts
from vllm_safe.check.model_findings import check_running_model
from vllm_safe.cli.table import align_columns
from vllm_safe.common.errors import Failure
from vllm_safe.config.reader import load
from vllm_safe.config.settings import Config
from vllm_safe.decide.limits import decide_budget, unit_of
from vllm_safe.decide.preparation import decide_preparation
from vllm_safe.decide.show_rows import decide_show
from vllm_safe.earlyoom.earlyoom_arguments import decide_earlyoom
from vllm_safe.host.host_facts import read_host
from vllm_safe.host.start_facts import StartFacts
from vllm_safe.models.model_files import ModelFiles
from vllm_safe.swap.swap_decision import decide_swap
from vllm_safe.swap.swapfile_facts import CandidateFile, SwapFacts, SwapFolder

CASES = sorted(path for path in (Path(__file__).parents[2] / "golden").iterdir() if (path / "config.yaml").exists())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_decisions(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(case)  # so that origins are config.yaml:LINE wherever the tree is
    got = "\n".join(_decisions(case)) + "\n"
    expected = case / "expected.txt"
    if os.environ.get("GOLDEN_UPDATE"):
        expected.write_text(got)
    want = expected.read_text()
    assert got == want, "\n" + "".join(
        difflib.unified_diff(want.splitlines(keepends=True), got.splitlines(keepends=True), "expected", "got")
    )


def _decisions(case: Path) -> Iterator[str]:
    config, host = load(Path("config.yaml")), read_host(case / "root")
    yield "swap"
    refused = None
    try:
        steps = decide_swap(config.swap, host, _swap_facts(case, config))
        yield from (f"  {step.describe()}" for step in steps)
    except Failure as failure:
        refused = failure
        yield f"  refused: {failure.message} | {failure.hint}"
    yield "earlyoom"
    yield from (f"  {line}" for line in (decide_earlyoom(config).arguments or "left to the admin").splitlines())
    yield "units"
    yield from (
        f"  {unit}" + "".join(f" {key}={value}" for key, value in values.items())
        for unit, values in decide_budget(config, host).units.items()
    )
    yield "check"
    yield from _found(check_machine(MachineFacts(config, host, decide_budget(config, host), Inspection(), refused)))
    for name, model in config.models.items():
        yield from ("", f"model {name}")
        files = ModelFiles(Path("/"), model.model, present=True) if model.model else None
        at = situation_of(config, host, name, StartFacts(server=True, model=files, swap_file=str(config.swap.file)))
        yield from _found(check_running_model(at, Inspection()))
        plan = decide_preparation(at)
        assert plan.launch is not None
        yield f"  start: {plan.launch.refusal or 'goes ahead'}"
        yield "  set-property " + unit_of(name) + "".join(f" {key}={value}" for key, value in plan.units[unit_of(name)].items())
        for part in decide_show(config, host, name, {}):
            yield f"  {part.title}"
            yield from align_columns(((row.name, row.text, row.origin) for row in part.rows), indent="    ")


def _found(findings: tuple[object, ...]) -> Iterator[str]:
    for finding in findings:
        words = vars(finding)
        yield f"  {words['level']} {words['what']}" + (f" | {words['do_next']}" if words["do_next"] else "")


def _swap_facts(case: Path, config: Config) -> SwapFacts:
    disk = json.loads((case / "disk.json").read_text())
    files = tuple(CandidateFile(Path(path), size) for path, size in disk["ours"].items())
    return SwapFacts(config.swap.file, files, SwapFolder(total=disk["total"], free=disk["free"], profiles=frozenset({"single"})))


def test_cases_are_there() -> None:
    names = {case.name for case in CASES}
    assert {"plan-machine", "64-gib-no-swap", "laptop", "btrfs-root", "two-models"} <= names
