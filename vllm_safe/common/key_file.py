"""A file with one key, which root alone may read."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from vllm_safe.common.errors import Failure
from vllm_safe.common.trusted_paths import open_trusted_folder

_LONGEST_KEY = 4096


@dataclass(frozen=True)
class Key:
    """The content of a key file, or the `problem` with it. The text is in no repr."""

    path: Path
    text: str = field(default="", repr=False)
    problem: str = ""
    way_out: str = ""
    hidden: bool = False  # we may not look: only root can say how it is


def read_key(path: Path) -> Key:
    """A file with one key, which root alone may read. Links to it are not followed, so that nobody can point at another secret."""
    try:
        folder = open_trusted_folder(path.parent)
    except Failure as failure:
        return Key(path, problem=failure.message, way_out=failure.hint, hidden=isinstance(failure.__cause__, PermissionError))
    except OSError as error:
        return _bad_key(path, f"{path}: {error.strerror}")
    try:
        # O_NONBLOCK: a pipe of that name must not stop us
        handle = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        with os.fdopen(handle, "rb") as file:
            return _judge_key(path, os.fstat(file.fileno()), file.read(_LONGEST_KEY + 1))
    except PermissionError:
        return Key(path, problem=f"{path} may not be read", way_out="Only root may read it: run this as root.", hidden=True)
    except FileNotFoundError:
        return _bad_key(path, f"there is no {path}")
    except OSError as error:
        return _bad_key(path, f"cannot read {path}: {error.strerror}")
    finally:
        os.close(folder)


def _judge_key(path: Path, status: os.stat_result, content: bytes) -> Key:
    if not stat.S_ISREG(status.st_mode):
        return _bad_key(path, f"{path} is no regular file")
    if status.st_mode & 0o077 or status.st_uid not in {0, os.geteuid()}:
        return _bad_key(path, f"{path} holds a key, and others than root may read or change it (mode {stat.S_IMODE(status.st_mode):04o})")
    words = content.split()
    if len(words) != 1 or len(content) > _LONGEST_KEY or not (words[0].isascii() and words[0].decode("ascii").isprintable()):
        return _bad_key(path, f"{path} is not one line with one key")
    return Key(path, words[0].decode())


def _bad_key(path: Path, problem: str) -> Key:
    way_out = f"Make one: (umask 077; openssl rand -hex 32 > {path}), or: chown root {path}; chmod 600 {path}"
    return Key(path, problem=problem, way_out=way_out)
