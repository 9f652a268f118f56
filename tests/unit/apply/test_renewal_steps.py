"""An edit of the power limits is applied once."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_safe.apply.renewal_steps import renew_power_steps
from vllm_safe.power.power_facts import PowerNote


@pytest.mark.parametrize(
    ("applied", "asked", "renews"), [(None, "", False), (None, "75%", True), ("75%", "75%", False), ("75%", "80%", True), ("75%", "", True)]
)
def test_only_a_setting_that_was_not_applied_is_renewed(applied: str | None, asked: str, *, renews: bool, tmp_path: Path) -> None:
    if applied is not None:
        (tmp_path / "power").write_text(PowerNote(applied).to_json())
    steps = renew_power_steps(asked, tmp_path / "power")
    assert [step.describe() for step in steps] == ["have vllm-safe-power.service reload its settings if it runs"] * renews
