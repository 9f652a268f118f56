"""The names of the configured models."""

from __future__ import annotations

import pytest

from vllm_safe.common.errors import Misuse
from vllm_safe.config.model_names import require_model
from vllm_safe.config.settings import Config, Model


@pytest.mark.parametrize(
    ("models", "asked", "hint"), [(["qwen72b"], "qwen72", "qwen72b?"), (["qwen72b"], "zzz", "qwen72b"), ([], "zzz", "none")]
)
def test_the_name_that_was_meant_is_said(models: list[str], asked: str, hint: str) -> None:
    with pytest.raises(Misuse, match=f"no model {asked} in /c.yaml") as caught:
        require_model(Config(models=dict.fromkeys(models, Model(model="a/b")), source="/c.yaml"), asked)
    assert hint in caught.value.hint
