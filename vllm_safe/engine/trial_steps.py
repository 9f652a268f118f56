"""The step that writes which engines are untried: see engine/trial_facts.py."""

from __future__ import annotations

import json
from collections.abc import Mapping

from vllm_safe.common.file_steps import RemoveFile, WriteFile
from vllm_safe.common.paths import UNTRIED
from vllm_safe.common.steps import Step


def mark_step(marks: Mapping[str, float]) -> Step:
    """Return the step after which exactly these marks exist."""
    return WriteFile(UNTRIED, json.dumps(dict(marks)) + "\n") if marks else RemoveFile(UNTRIED)
