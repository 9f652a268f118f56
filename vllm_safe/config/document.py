"""A YAML file as immutable values that know their line and column. What the values mean is the reader's business."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from vllm_safe.config import syntax
from vllm_safe.errors import ConfigError, Mistake

MAX_BYTES = 1 << 20  # of the file: one model takes 1 KB
_MAX_VALUES = 20_000  # with each alias counted as often as it is used
_MAX_DEPTH = 32

_CORE = "tag:yaml.org,2002:"
_TAGS = frozenset({"str", "int", "float", "bool", "null", "timestamp", "value", "merge", "map", "seq"})


@dataclass(frozen=True, slots=True)
class Scalar:
    """One value. `text` is what is written; `tag` is what YAML 1.1 takes it for: "str", "int", "bool", "null" ..."""

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
    """Keys and values in the file's order; no key is there twice."""

    items: tuple[tuple[Scalar, Node], ...]
    line: int
    column: int


Node = Scalar | Sequence | Mapping


@dataclass(frozen=True, slots=True)
class Document:
    """The root of a file, and the mistakes that did not stand in the way of reading on."""

    root: Node
    mistakes: tuple[Mistake, ...]


def shown(text: str) -> str:
    """A text of the file in quotes, on one line, short, and unable to drive a terminal."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def read(path: Path) -> Document:
    """The one YAML document in the file. Raises ConfigError if it cannot be opened, or is no YAML."""
    file = str(path)
    text = _decode(file, _content(path))
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.reader.ReaderError as error:
        line, column = _place(text[: error.position])
        raise _refusal(file, line, column, f"the character {chr(error.character)!r} is not allowed in YAML text") from None
    except yaml.MarkedYAMLError as error:
        raise ConfigError([Mistake(file, *found) for found in syntax.explain(error, text)]) from None
    if root is None:
        raise _refusal(file, 0, 0, "has no settings; expected sections such as `models`")
    converter = _Converter(file)
    return Document(converter.convert(root), tuple(converter.mistakes))


def _refusal(file: str, line: int, column: int, text: str) -> ConfigError:
    return ConfigError([Mistake(file, line, column, text)])


def _content(path: Path) -> bytes:
    """The bytes of a regular file, opened once: what is checked is what is read. Nothing that could block or is too long is read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise _refusal(str(path), 0, 0, _why_not_opened(error)) from None
    try:
        if problem := _unacceptable(path, os.fstat(descriptor)):
            raise _refusal(str(path), 0, 0, problem)
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise _refusal(str(path), 0, 0, _why_not_opened(error)) from None
    finally:
        os.close(descriptor)
    if len(content) > MAX_BYTES:  # it grew, or lies about its size as files in /proc do
        raise _refusal(str(path), 0, 0, _too_long(len(content)))
    return content


def _why_not_opened(error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file; expected the configuration (the package installs /etc/vllm-safe/config.yaml)"
    if isinstance(error, PermissionError):
        return "may not be read by this user; run the command as root"
    return f"cannot be read: {error.strerror if isinstance(error, OSError) else error}"


def _unacceptable(path: Path, facts: os.stat_result) -> str:
    """Why this file is not taken as a configuration, or ""."""
    if not stat.S_ISREG(facts.st_mode):
        other = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
        return f"is {other.get(stat.S_IFMT(facts.st_mode), 'no file')}; expected a file with settings"
    if facts.st_size > MAX_BYTES:
        return _too_long(facts.st_size)
    if os.geteuid() != 0:
        return ""  # the reader can do no more than whoever wrote the file
    # What stands here is done as root, so whoever can write it is root.
    if facts.st_uid != 0:
        return f"belongs to user {facts.st_uid}, and root acts on it; run: chown root {path}"
    if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = f"{stat.S_IMODE(facts.st_mode):04o}"
        return f"may be written by others than its owner (mode {mode}), and root acts on it; run: chmod go-w {path}"
    return ""


def _too_long(size: int) -> str:
    return f"has {size} bytes; expected a configuration of at most {MAX_BYTES} bytes"


def _decode(file: str, content: bytes) -> str:
    if (at := content.find(b"\0")) >= 0:
        line, column = _place(content[:at].decode(errors="replace"))
        raise _refusal(file, line, column, "a NUL byte: this is a binary file (or UTF-16); expected text in UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, column = _place(content[: error.start].decode(errors="replace"))
        raise _refusal(file, line, column, f"the byte 0x{content[error.start]:02x} is not UTF-8; expected text in UTF-8") from None


def _place(before: str) -> tuple[int, int]:
    """Line and column, from 1, of what follows the text `before`."""
    return before.count("\n") + 1, len(before) - before.rfind("\n")


class _Loader(yaml.SafeLoader):
    """Refuses what is nested deeper than anybody writes, before Python's own recursion limit does."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if parent and self.depth > _MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=syntax.TOO_DEEP, problem_mark=parent.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Converter:
    """PyYAML's nodes into ours. A node used by several aliases is converted once and counted as often as it is used."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.mistakes: list[Mistake] = []
        self._done: dict[int, tuple[Node, int]] = {}  # by id of PyYAML's node: ours, and its number of values
        self._open: set[int] = set()

    def convert(self, node: yaml.Node) -> Node:
        return self._convert(node)[0]

    def _convert(self, node: yaml.Node) -> tuple[Node, int]:
        if done := self._done.get(id(node)):
            return done
        line, column = node.start_mark.line + 1, node.start_mark.column + 1
        if id(node) in self._open:
            raise _refusal(self.file, line, column, "an alias (*) stands inside of what it repeats; write the values out")
        self._open.add(id(node))
        tag = node.tag.removeprefix(_CORE)
        if tag not in _TAGS:
            self._mistake(line, column, f"the tag {shown(node.tag.replace(_CORE, '!!'))}; expected a value without a tag")
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
            raise _refusal(self.file, line, column, many)
        self._open.discard(id(node))
        self._done[id(node)] = converted, size
        return converted, size

    def _text(self, node: yaml.Node, line: int, column: int) -> str:
        text = str(node.value)
        if bad := re.search("[\0\ud800-\udfff]", text):  # escapes such as "\0" get past the file's own check
            self._mistake(line, column, f"the character {bad[0]!r} in a text; no program can be given that")
            return re.sub("[\0\ud800-\udfff]", "?", text)
        return text

    def _pairs(self, node: yaml.MappingNode) -> Iterator[tuple[Scalar, yaml.Node]]:
        """The keys as text, each once, with their values."""
        first: dict[str, Scalar] = {}
        for key, value in node.value:
            line, column = key.start_mark.line + 1, key.start_mark.column + 1
            if not isinstance(key, yaml.ScalarNode) or key.tag == _CORE + "null":
                self._mistake(line, column, "a key that is not text; expected a name before the colon")
            elif key.tag == _CORE + "merge":
                self._mistake(line, column, "the merge key << is not supported; expected an alias for a whole value, as in args: *name")
            elif (text := self._text(key, line, column)) in first:
                self._mistake(
                    line, column, f"{shown(text)} is here a second time, first in line {first[text].line}; expected each key once"
                )
            else:
                first[text] = Scalar(text, "str", line, column)
                yield first[text], value

    def _mistake(self, line: int, column: int, text: str) -> None:
        self.mistakes.append(Mistake(self.file, line, column, text))
