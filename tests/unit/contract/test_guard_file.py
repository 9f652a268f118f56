"""The guard's settings, as `apply` writes them and the guard reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_safe.apply.guard_steps import guard_steps, keep_guard_steps, undo_guard_steps
from vllm_safe.config.reader import load
from vllm_safe.config.settings import Config
from vllm_safe.contract.guard_file import GuardPlan, Threshold, read_plan
from vllm_safe.decide.guard_settings import decide_guard


def test_the_defaults_are_the_settings() -> None:
    assert decide_guard(Config()) == GuardPlan()


def test_the_settings_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("guard: {enabled: no, squeeze_pressure: 5%, squeeze_after: 1s, freeze_time: 5s, kill_after: 10min}\n")
    assert decide_guard(load(path)) == GuardPlan(False, Threshold(0.05, 1.0), freeze_time=5.0, kill=Threshold(0.8, 600.0))  # noqa: FBT003


def test_what_was_written_is_read() -> None:
    plan = GuardPlan(note="line 3: what")
    assert GuardPlan.from_text(plan.to_text()) == plan


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "squeeze 1",
        GuardPlan(freeze_time=60).to_text(),
        GuardPlan(kill=Threshold(0, 1)).to_text(),
        GuardPlan().to_text() + "more 1",
        GuardPlan().to_text().replace("0.2", "much"),
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"incomplete|range|could not|unpack|expected"):
        GuardPlan.from_text(text)


def test_apply_writes_what_is_not_so_and_a_mistake_leaves_the_last_good_one(tmp_path: Path) -> None:
    path = tmp_path / "guard.plan"
    plan = GuardPlan(freeze_time=2.0)
    for step in guard_steps(plan, path):
        step.run()
    assert guard_steps(plan, path) == ()
    for step in keep_guard_steps("config.yaml:1: what", path):
        step.run()
    assert read_plan(str(path)) == plan._replace(note="config.yaml:1: what")
    for step in (*guard_steps(plan, path), *undo_guard_steps(path)):
        step.run()
    assert not path.exists()
    assert undo_guard_steps(path) == ()
