"""The reader of config.yaml. It reports all mistakes at once, each with its position, what was expected and what was probably meant."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from vllm_safe.common.errors import ConfigError, Mistake
from vllm_safe.config import document, value_types
from vllm_safe.config.document import Mapping, Node, Scalar, quote_value
from vllm_safe.config.mismatch import Mismatch, MismatchError, is_null, mismatch
from vllm_safe.config.rules import find_violations
from vllm_safe.config.settings import SECTIONS, Config, Model, Position, settings_of

DEFAULT_PATH = Path("/etc/vllm-safe/config.yaml")

_Section = TypeVar("_Section")
_MODEL_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"


def load(path: Path = DEFAULT_PATH) -> Config:
    """Read and validate the settings of the file. Raises ConfigError with every mistake in it."""
    source = document.read_document(path)
    reader = _Reader(str(path))
    config = reader.config(source.root)
    reader.check(config)
    if mistakes := [*source.mistakes, *reader.mistakes]:
        raise ConfigError(mistakes)
    return config


class _Reader:
    """A walk over the nodes of a file along the table of settings. An invalid value is reported, and replaced by its default."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.mistakes: list[Mistake] = []
        self._positions: dict[str, Position] = {}
        self._broken: set[str] = set()  # dotted paths of the invalid values, which were replaced by their defaults

    def config(self, root: Node) -> Config:
        parts = {key.text: (key, node) for key, node in self._entries("", root, (*SECTIONS, "models"))}
        sections: dict[str, Any] = {name: self._section(name, rows, parts[name][1]) for name, rows in SECTIONS.items() if name in parts}
        models = self._models(parts["models"][1]) if "models" in parts else {}
        return Config(
            **sections,
            models=MappingProxyType(models),
            positions=MappingProxyType(self._positions),
            source=self.file,
        )

    def check(self, config: Config) -> None:
        """Report settings that contradict each other, unless one of them has already been reported."""
        for violation in find_violations(config, self._broken):
            position = self._nearest_position(violation.paths[0])
            self.mistakes.append(Mistake(self.file, position.line, position.column, violation.text))

    def _models(self, node: Node) -> dict[str, Model]:
        models = {}
        for key, value in self._entries("models", node, None):
            name = key.text
            if not re.fullmatch(_MODEL_NAME, name):
                expected = "at most 64 letters, digits, dots, - and _, starting with a letter or digit, since the unit is vllm@NAME.service"
                tidy = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:64]
                self._report("models", Mismatch(key, f"cannot have a model named {quote_value(name)}", expected, tidy))
                name = quote_value(name)
                self._positions[f"models.{name}"] = self._position(key)
            models[name] = self._section(f"models.{name}", Model, value)
        return models

    def _section(self, path: str, rows: type[_Section], node: Node) -> _Section:
        """Read a section into its class `rows`."""
        table = {row.name: row for row in settings_of(rows)}
        values = {}
        for key, value in self._entries(path, node, table):
            row, inner = table[key.text], f"{path}.{key.text}"
            if row.kind is value_types.SECTION:
                values[row.name] = self._section(inner, type(row.default), value)
            else:
                try:
                    values[row.name] = row.kind.read(value)
                except MismatchError as error:
                    self._broken.add(inner)
                    for flaw in error.flaws:
                        self._report(inner, flaw, row.kind)
                if isinstance(value, Mapping):  # args and env: `show` prints the position of each entry
                    self._positions.update({f"{inner}.{name.text}": self._position(name) for name, _ in value.items})
        return rows(**values)

    def _entries(self, path: str, node: Node, names: Collection[str] | None) -> Iterator[tuple[Scalar, Node]]:
        """Yield the keys of a section with their values, and report keys that are not in `names` (None: any name). Empty is valid."""
        if is_null(node):
            return
        if not isinstance(node, Mapping):
            self._broken.add(path)
            for flaw in mismatch(node, expected="" if path else "sections such as `models`").flaws:
                self._report(path or "the file", flaw, value_types.SECTION)
            return
        for key, value in node.items:
            if names is not None and key.text not in names:
                self._unknown(path, key, names)
                continue
            own = f"{path}.{key.text}" if path else key.text
            self._positions[own] = self._position(value if isinstance(value, Scalar) and not is_null(value) else key)
            yield key, value

    def _unknown(self, path: str, key: Scalar, names: Collection[str]) -> None:
        from vllm_safe.config.spelling import intended_setting  # noqa: PLC0415 - difflib is only loaded for a file with a mistake

        what = f"unknown setting {quote_value(key.text)} in {path}" if path else f"unknown section {quote_value(key.text)}"
        self._report("", Mismatch(key, what, f"one of {', '.join(names)}", intended_setting(key.text, names)))

    def _report(self, path: str, flaw: Mismatch, kind: value_types.ValueType | None = None) -> None:
        expected, suggestion = flaw.expected, flaw.suggestion
        if kind and not expected:
            expected = kind.expected
            if kind.choices and not suggestion and isinstance(flaw.node, Scalar):
                from vllm_safe.config.spelling import closest  # noqa: PLC0415 - difflib is only loaded for a file with a mistake

                suggestion = closest(flaw.node.text, kind.choices)
        text = f"{path} {flaw.problem}".strip()
        text += f"; expected {expected}" if expected else ""
        text += f"; did you mean {suggestion}?" if suggestion.isprintable() and 0 < len(suggestion) <= 100 else ""
        self.mistakes.append(Mistake(self.file, flaw.node.line, flaw.node.column, text))

    def _position(self, node: Node) -> Position:
        return Position(self.file, node.line, node.column)

    def _nearest_position(self, path: str) -> Position:
        """Return the position of a setting, or else of the nearest section around it that the file has."""
        while path not in self._positions and "." in path:
            path = path.rpartition(".")[0]
        return self._positions.get(path, Position(self.file, 0, 0))
