"""The text of a configuration file. It is opened once, checked before it is read, and refused if root should not act on it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from vllm_safe.common.errors import ConfigError, Mistake

MAX_BYTES = 1 << 20  # one model takes 1 KB


def read_config_text(path: Path) -> str:
    """Return the content of the file.

    Raises ConfigError if it is not text, too long, not a regular file, or writable by others than root.
    """
    content = _content(path)
    if (offset := content.find(b"\0")) >= 0:
        before = content[:offset].decode(errors="replace")
        raise refuse_file(path, "a NUL byte: this is a binary file (or UTF-16); expected text in UTF-8", *place_after(before))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode(errors="replace")
        problem = f"the byte 0x{content[error.start]:02x} is not UTF-8; expected text in UTF-8"
        raise refuse_file(path, problem, *place_after(before)) from None


def refuse_file(path: Path, problem: str, line: int = 0, column: int = 0) -> ConfigError:
    """Return the error for a file that is not read any further."""
    return ConfigError([Mistake(str(path), line, column, problem)])


def place_after(before: str) -> tuple[int, int]:
    """Return the line and column, counted from 1, of the character that follows the text `before`."""
    return before.count("\n") + 1, len(before) - before.rfind("\n")


def _content(path: Path) -> bytes:
    """Return the bytes of the file. The file that is checked is the file that is read, and reading never blocks or goes on for ever."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise refuse_file(path, _why_not_opened(error)) from None
    try:
        if problem := _unacceptable(path, os.fstat(descriptor)):
            raise refuse_file(path, problem)
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise refuse_file(path, _why_not_opened(error)) from None
    finally:
        os.close(descriptor)
    if len(content) > MAX_BYTES:  # the file grew, or its st_size is 0, as that of files in /proc
        raise refuse_file(path, _too_long(len(content)))
    return content


def _why_not_opened(error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file; expected the configuration (`vllm-safe config --sample` prints one)"
    if isinstance(error, PermissionError):
        return "cannot be read by this user; run the command as root"
    return f"cannot be read: {error.strerror if isinstance(error, OSError) else error}"


def _unacceptable(path: Path, facts: os.stat_result) -> str:
    """Return why this file is refused as a configuration, or ""."""
    if not stat.S_ISREG(facts.st_mode):
        other = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
        return f"is {other.get(stat.S_IFMT(facts.st_mode), 'not a regular file')}; expected a file with settings"
    if facts.st_size > MAX_BYTES:
        return _too_long(facts.st_size)
    if os.geteuid() != 0:
        return ""  # a command without root's rights does no more than any other program of that user
    # Root acts on this file, so whoever can write it has root's rights.
    if facts.st_uid != 0:
        return f"belongs to uid {facts.st_uid}, but root acts on it; run: chown root {path}"
    if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = f"{stat.S_IMODE(facts.st_mode):04o}"
        return f"is writable by others than its owner (mode {mode}), but root acts on it; run: chmod go-w {path}"
    return ""


def _too_long(size: int) -> str:
    return f"has {size} bytes; expected a configuration of at most {MAX_BYTES} bytes"
