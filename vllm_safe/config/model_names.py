"""The names of the configured models."""

from __future__ import annotations

from vllm_safe.common.errors import Misuse
from vllm_safe.config.settings import Config, Model


def require_model(config: Config, name: str) -> Model:
    """Return the model `name`. Raises Misuse, with the names of all models, if the configuration has no such model."""
    if model := config.models.get(name):
        return model
    from vllm_safe.config.spelling import closest  # noqa: PLC0415 - difflib is only loaded for a wrong name

    near = closest(name, config.models)
    way_out = f"Did you mean {near}?" if near else f"Configured models: {', '.join(config.models) or 'none yet'}."
    raise Misuse(f"there is no model {name} in {config.source or 'the configuration'}", hint=way_out)
