"""A YAML file as immutable values with their line and column. reader.py interprets the values."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from vllm_safe.common.errors import ConfigError, Mistake
from vllm_safe.config import source, yaml_errors

_MAX_VALUES = 20_000  # in one file; an alias counts as often as it is used
_MAX_DEPTH = 32

_CORE = "tag:yaml.org,2002:"
_TAGS = frozenset({"str", "int", "float", "bool", "null", "timestamp", "value", "merge", "map", "seq"})


@dataclass(frozen=True, slots=True)
class Scalar:
    """One value. `text` is the text in the file. `tag` is its type according to YAML 1.1: "str", "int", "bool", "null" ..."""

    text: str
    tag: str
    line: int
    column: int
    quoted: bool = False


@dataclass(frozen=True, slots=True)
class Sequence:
    """A list."""

    items: tuple[Node, ...]
    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Mapping:
    """Keys and values in the file's order. Each key occurs once."""

    items: tuple[tuple[Scalar, Node], ...]
    line: int
    column: int


Node = Scalar | Sequence | Mapping


@dataclass(frozen=True, slots=True)
class Document:
    """The root of a file, and the mistakes in it that did not prevent reading the rest."""

    root: Node
    mistakes: tuple[Mistake, ...]


def quote_value(text: str) -> str:
    """Quote a text of the file for a message: on one line, shortened, and without characters that control a terminal."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def read_document(path: Path) -> Document:
    """Read the only YAML document in the file. Raises ConfigError if the file cannot be opened or is not valid YAML."""
    text = source.read_config_text(path)
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.reader.ReaderError as error:
        problem = f"the character {chr(error.character)!r} is not allowed in YAML text"
        raise source.refuse_file(path, problem, *source.place_after(text[: error.position])) from None
    except yaml.MarkedYAMLError as error:
        raise ConfigError([Mistake(str(path), *found) for found in yaml_errors.explain_yaml_error(error, text)]) from None
    if root is None:
        raise source.refuse_file(path, "has no settings; expected sections such as `models`")
    converter = _Converter(path)
    return Document(converter.convert(root), tuple(converter.mistakes))


class _Loader(yaml.SafeLoader):
    """A loader that refuses input nested deeper than anybody writes, before Python's own recursion limit is reached."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if parent and self.depth > _MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=yaml_errors.TOO_DEEP, problem_mark=parent.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Converter:
    """A converter from PyYAML's nodes to the types above.

    A node that several aliases use is converted once, and counted as often as it is used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.mistakes: list[Mistake] = []
        self._done: dict[int, tuple[Node, int]] = {}  # by id() of PyYAML's node: the converted node, and its number of values
        self._open: set[int] = set()

    def convert(self, node: yaml.Node) -> Node:
        return self._convert(node)[0]

    def _convert(self, node: yaml.Node) -> tuple[Node, int]:
        if done := self._done.get(id(node)):
            return done
        line, column = node.start_mark.line + 1, node.start_mark.column + 1
        if id(node) in self._open:
            raise source.refuse_file(self._path, "an alias (*) is inside the value that it refers to; write the values out", line, column)
        self._open.add(id(node))
        tag = node.tag.removeprefix(_CORE)
        if tag not in _TAGS:
            self._mistake(line, column, f"unknown tag {quote_value(node.tag.replace(_CORE, '!!'))}; expected a value without a tag")
            tag = "str"
        converted: Node
        size = 1
        if isinstance(node, yaml.MappingNode):
            pairs = []
            for key, value in self._pairs(node):
                item, count = self._convert(value)
                pairs.append((key, item))
                size += count
            converted = Mapping(tuple(pairs), line, column)
        elif isinstance(node, yaml.SequenceNode):
            items = [self._convert(item) for item in node.value]
            size += sum(count for _, count in items)
            converted = Sequence(tuple(item for item, _ in items), line, column)
        else:
            quoted = isinstance(node, yaml.ScalarNode) and node.style is not None
            converted = Scalar(self._text(node, line, column), tag, line, column, quoted)
        if size > _MAX_VALUES:
            many = f"more than {_MAX_VALUES} values here, with each alias (*) written out; expected a few hundred"
            raise source.refuse_file(self._path, many, line, column)
        self._open.discard(id(node))
        self._done[id(node)] = converted, size
        return converted, size

    def _text(self, node: yaml.Node, line: int, column: int) -> str:
        text = str(node.value)
        if bad := re.search("[\0\ud800-\udfff]", text):  # an escape such as "\0" passes the check of the file's bytes
            self._mistake(line, column, f"the character {bad[0]!r} in a text; it cannot be passed to a program")
            return re.sub("[\0\ud800-\udfff]", "?", text)
        return text

    def _pairs(self, node: yaml.MappingNode) -> Iterator[tuple[Scalar, yaml.Node]]:
        """Yield each key as text, once, with its value. Report keys that are not text, and duplicates."""
        first: dict[str, Scalar] = {}
        for key, value in node.value:
            line, column = key.start_mark.line + 1, key.start_mark.column + 1
            if not isinstance(key, yaml.ScalarNode) or key.tag == _CORE + "null":
                self._mistake(line, column, "a key that is not text; expected a name before the colon")
            elif key.tag == _CORE + "merge":
                self._mistake(line, column, "the merge key << is not supported; expected an alias for a whole value, as in args: *name")
            elif (text := self._text(key, line, column)) in first:
                self._mistake(
                    line, column, f"duplicate key {quote_value(text)}, first used in line {first[text].line}; expected each key once"
                )
            else:
                first[text] = Scalar(text, "str", line, column)
                yield first[text], value

    def _mistake(self, line: int, column: int, text: str) -> None:
        self.mistakes.append(Mistake(str(self._path), line, column, text))
