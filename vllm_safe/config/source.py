"""The text of a configuration file: opened once, looked at before it is read, and refused if root had better not act on it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from vllm_safe.common.errors import ConfigError, Mistake

MAX_BYTES = 1 << 20  # one model takes 1 KB


def read_config_text(path: Path) -> str:
    """What is in the file. Raises ConfigError for what is no text, too long, no regular file, or writable by others than root."""
    content = _content(path)
    if (at := content.find(b"\0")) >= 0:
        before = content[:at].decode(errors="replace")
        raise refuse_file(path, "a NUL byte: this is a binary file (or UTF-16); expected text in UTF-8", *place_after(before))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode(errors="replace")
        problem = f"the byte 0x{content[error.start]:02x} is not UTF-8; expected text in UTF-8"
        raise refuse_file(path, problem, *place_after(before)) from None


def refuse_file(path: Path, problem: str, line: int = 0, column: int = 0) -> ConfigError:
    """The error of a file that is not read on."""
    return ConfigError([Mistake(str(path), line, column, problem)])


def place_after(before: str) -> tuple[int, int]:
    """Line and column, from 1, of what follows the text `before`."""
    return before.count("\n") + 1, len(before) - before.rfind("\n")


def _content(path: Path) -> bytes:
    """The bytes of the file. What is checked is what is read, and nothing is read that blocks or has no end."""
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
    if len(content) > MAX_BYTES:  # it grew, or says nothing of its size, as files in /proc do
        raise refuse_file(path, _too_long(len(content)))
    return content


def _why_not_opened(error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file; expected the configuration (`vllm-safe config --sample` prints one)"
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
