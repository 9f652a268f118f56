"""Write which engines are untried: see host/trial.py."""

from __future__ import annotations

import json
from collections.abc import Mapping

from vllm_safe.apply.files import RemoveFile, WriteFile
from vllm_safe.apply.steps import Step
from vllm_safe.paths import UNTRIED


def mark_step(marks: Mapping[str, float]) -> Step:
    """The step that leaves just these marks."""
    return WriteFile(UNTRIED, json.dumps(dict(marks)) + "\n") if marks else RemoveFile(UNTRIED)
