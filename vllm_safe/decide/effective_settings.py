"""The configuration that is in force: every setting with its value and where the value is from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_safe.common.sizes import Amount
from vllm_safe.config import value_types
from vllm_safe.config.profiles import PROFILES
from vllm_safe.config.settings import SECTIONS, Config, Limits, Model, Setting, settings_of
from vllm_safe.decide.origin import Origin, origin_of
from vllm_safe.decide.serve_command import decide_timeouts
from vllm_safe.decide.server_address import health_url

# A string that YAML takes for itself: no number, date or indicator, and none of its words for booleans and null.
_PLAIN = re.compile(r"(?!(?:true|false|yes|no|on|off|null|y|n)$)[A-Za-z/][\w./:@+-]*(?<!:)", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True)
class EffectiveSetting:
    """One setting. `text` is its value as YAML, `value` what --json has: bytes, seconds, or a share such as "90%"."""

    path: tuple[str, ...]
    text: str
    value: Any
    origin: str


def effective_settings(config: Config) -> Iterator[EffectiveSetting]:
    """Every setting, in the order of the sample; of a model without those that have no value."""
    for name, section in SECTIONS.items():
        for row in settings_of(section):
            yield _effective(config, (name, row.name), row, getattr(getattr(config, name), row.name))
    for name in config.models:
        yield from _of_model(config, name)


def _of_model(config: Config, name: str) -> Iterator[EffectiveSetting]:
    """Return the model's own value, else what its profile or the section `limits` sets, else the default."""
    model = config.models[name]
    profile = PROFILES[model.profile]
    timeouts = decide_timeouts(config, name)
    for row in settings_of(Model):
        path, value = ("models", name, row.name), getattr(model, row.name)
        if row.kind is value_types.SECTION:
            for limit in settings_of(Limits):
                own, of_all = getattr(model.limits, limit.name), getattr(config.limits, limit.name)
                origin = origin_of(config, ".".join((*path, limit.name)), f"limits.{limit.name}")
                yield _effective(config, (*path, limit.name), limit, of_all if own is None else own, origin)
        elif row.kind in {value_types.ARGS, value_types.ENV}:
            yield from _mapping(config, path, getattr(profile, row.name), value, f"profile {profile.name}")
        elif row.name in timeouts:
            yield _effective(config, path, row, timeouts[row.name].value, timeouts[row.name].origin)
        elif row.name == "health":
            yield _effective(config, path, row, health_url(model), origin_of(config, ".".join(path), f"models.{name}.port"))
        elif value is not None or row.kind.write(None) != "None":
            yield _effective(config, path, row, value)


def _mapping(
    config: Config, path: tuple[str, ...], inherited: Mapping[str, Any], own: Mapping[str, Any], source: str
) -> Iterator[EffectiveSetting]:
    """Return the options or variables of a model, below those of its profile."""
    for key, value in {**inherited, **own}.items():
        origin = str(origin_of(config, ".".join((*path, key)))) if key in own else source
        yield EffectiveSetting((*path, key), as_yaml(value), value, origin)


def _effective(config: Config, path: tuple[str, ...], row: Setting, value: Any, origin: Origin | None = None) -> EffectiveSetting:  # noqa: ANN401 -- of the setting's own type
    text = as_yaml(list(value)) if row.kind is value_types.ARGV else row.kind.write(value)
    if isinstance(value, str | Path) and row.kind.write is str:
        text = as_yaml(text)
    return EffectiveSetting(path, text, _plain_value(value), str(origin or origin_of(config, ".".join(path))))


def as_yaml(value: object) -> str:
    """Write a value, or a key, on one line of YAML. JSON is YAML, too."""
    return value if isinstance(value, str) and _PLAIN.fullmatch(value) else json.dumps(value, ensure_ascii=False)


def _plain_value(value: object) -> object:
    if isinstance(value, Amount):
        return str(value) if value.is_percent else value.value
    if isinstance(value, Mapping):  # power limits
        return {name: str(cap) for name, cap in value.items()}
    return str(value) if isinstance(value, Path) else value
