"""A file with one key, which only root may read."""

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
    """The content of a key file, or the `problem` with it. The repr does not contain the text."""

    path: Path
    text: str = field(default="", repr=False)
    problem: str = ""
    way_out: str = ""
    hidden: bool = False  # this user may not read it: only root can check it


def read_key(path: Path) -> Key:
    """Read a file with one key, which only root may read. Symbolic links are not followed, as they could lead to another secret."""
    try:
        folder = open_trusted_folder(path.parent)
    except Failure as failure:
        return Key(path, problem=failure.message, way_out=failure.hint, hidden=isinstance(failure.__cause__, PermissionError))
    except OSError as error:
        return _bad_key(path, f"{path}: {error.strerror}")
    try:
        # O_NONBLOCK: opening a named pipe must not block
        handle = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        with os.fdopen(handle, "rb") as file:
            return _judge_key(path, os.fstat(file.fileno()), file.read(_LONGEST_KEY + 1))
    except PermissionError:
        return Key(path, problem=f"{path} may not be read by this user", way_out="Run the command as root.", hidden=True)
    except FileNotFoundError:
        return _bad_key(path, f"{path} does not exist")
    except OSError as error:
        return _bad_key(path, f"cannot read {path}: {error.strerror}")
    finally:
        os.close(folder)


def _judge_key(path: Path, status: os.stat_result, content: bytes) -> Key:
    if not stat.S_ISREG(status.st_mode):
        return _bad_key(path, f"{path} is not a regular file")
    if status.st_mode & 0o077 or status.st_uid not in {0, os.geteuid()}:
        return _bad_key(path, f"{path} contains a key, but users other than root may access it (mode {stat.S_IMODE(status.st_mode):04o})")
    words = content.split()
    if len(words) != 1 or len(content) > _LONGEST_KEY or not (words[0].isascii() and words[0].decode("ascii").isprintable()):
        return _bad_key(path, f"{path} does not consist of one line with one key")
    return Key(path, words[0].decode())


def _bad_key(path: Path, problem: str) -> Key:
    way_out = f"Create a key: (umask 077; openssl rand -hex 32 > {path}). Or protect the file: chown root {path}; chmod 600 {path}"
    return Key(path, problem=problem, way_out=way_out)
