"""Allocation of swap space in an empty file: blocks on the disk without holes, and the header that mkswap(8) writes."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

from vllm_safe.common import libc
from vllm_safe.common.errors import Failure
from vllm_safe.common.progress import Progress
from vllm_safe.common.sizes import GIB, MIB
from vllm_safe.swap.swapfile_facts import LABEL

_ALLOCATION = GIB  # bytes per fallocate: small enough for Ctrl-C and a progress bar, large enough for long extents
_WRITE = 4 * MIB
_FLUSH = 64 * MIB  # bytes written between two fdatasync: more would fill RAM with dirty pages and stall all other writers


def allocate_swap_space(file: int, size: int, path: Path, *, nocow: bool, write: bool) -> None:
    """Create `size` bytes of swap space in the empty `file`, which `path` will name, and flush it to the disk.

    The space is allocated, or written if the file system cannot allocate or `write` requires it. Raises OSError or Failure; the file is
    then unusable.
    """
    if nocow:
        libc.set_nocow(file)  # btrfs allows this only while the file is empty
    if write or not _fallocate(file, size, path):
        _write_zeros(file, size, path)
    _mkswap(file)
    os.fsync(file)
    if (blocks := os.fstat(file).st_blocks * 512) < size:
        raise Failure(
            f"{path} has holes: {blocks} of {size} bytes are on the disk", hint="Set `swap.file` to a path on ext4, xfs or btrfs."
        )


def _fallocate(file: int, size: int, path: Path) -> bool:
    """Allocate the file, and return whether the file system supports that."""
    with Progress(f"allocating {path}", size) as progress:
        for offset in range(0, size, _ALLOCATION):
            try:
                libc.fallocate(file, offset, min(_ALLOCATION, size - offset))
            except OSError as error:
                if error.errno == errno.EOPNOTSUPP and offset == 0:
                    return False
                raise
            progress.update(offset)
    return True


def _write_zeros(file: int, size: int, path: Path) -> None:
    zeros = memoryview(bytes(_WRITE))
    done = flushed = 0
    with Progress(f"writing {path}", size) as progress:
        while done < size:
            done += os.write(file, zeros[: size - done])
            if done - flushed >= _FLUSH:
                os.fdatasync(file)
                os.posix_fadvise(file, flushed, done - flushed, os.POSIX_FADV_DONTNEED)  # the zeros are not read again
                flushed = done
            progress.update(done)


def _mkswap(file: int) -> None:
    command = ["/sbin/mkswap", "--label", LABEL, f"/proc/self/fd/{file}"]
    outcome = subprocess.run(command, pass_fds=(file,), capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if outcome.returncode:
        raise Failure(f"mkswap failed: {' '.join(outcome.stderr.split())}")
