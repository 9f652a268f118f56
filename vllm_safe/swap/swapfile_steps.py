"""Steps that create, activate and remove a swapfile. If they are interrupted anywhere, there is a complete swapfile or none.

A swapfile is created without a name (O_TMPFILE) and linked into place when it is complete: until then a crash leaves nothing behind. A file
is checked again right before it is deleted, moved or activated, and only changed if it is a swapfile of vllm-safe.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vllm_safe.common import libc
from vllm_safe.common.errors import Failure
from vllm_safe.common.progress import Progress
from vllm_safe.common.sizes import format_size
from vllm_safe.common.trusted_paths import open_trusted_folder
from vllm_safe.host.host_facts import SwapArea, read_swaps
from vllm_safe.swap import swapfile_facts
from vllm_safe.swap.swap_allocation import allocate_swap_space


def not_permitted() -> Failure:
    """Return the failure to report if the kernel denies swapon to this process, or would deny it."""
    hint = "Set `swap.size: none` to use the swap that is active. A container uses its host's: run `vllm-safe swap create` there."
    return Failure("this process may not turn swap on or off, as in a container", hint=hint)


@dataclass(frozen=True)
class MakeSwapfile:
    """The step that creates a swapfile without activating it.

    size: bytes; write: fill the file instead of allocating it; nocow: disable copy-on-write, as btrfs requires.
    """

    path: Path
    size: int
    nocow: bool = False
    write: bool = False

    def describe(self) -> str:
        """Describe the step in one line."""
        how = "written" if self.write else "allocated"
        return f"create the swapfile {self.path} of {format_size(self.size)}, {how}, readable by root only"

    def run(self) -> None:
        """Create the file. Raises Failure and leaves nothing behind; an existing file is not overwritten, but a Failure as well."""
        folder = open_trusted_folder(self.path.parent)
        try:
            handle = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, swapfile_facts.MODE, dir_fd=folder)
            try:
                allocate_swap_space(handle, self.size, self.path, nocow=self.nocow, write=self.write)
                os.link(f"/proc/self/fd/{handle}", self.path.name, dst_dir_fd=folder)
                os.fsync(handle)  # a second time, since btrfs writes the metadata of a file only when it has a name
                os.fsync(folder)
            finally:
                os.close(handle)
        except OSError as error:
            raise _failed(f"the swapfile {self.path} could not be created, and nothing is left of it", error) from error
        finally:
            os.close(folder)


@dataclass(frozen=True)
class TurnOn:
    """The step that activates a swapfile."""

    path: Path

    def describe(self) -> str:
        """Describe the step in one line."""
        return f"turn on {self.path}"

    def run(self) -> None:
        """Activate the file and check that it is active. A file that the kernel rejects is deleted, since it would only take space."""
        with _ours(self.path) as folder, _kernel_log() as log:
            try:
                libc.swapon(str(self.path))
            except PermissionError as error:
                raise not_permitted() from error
            except OSError as error:
                if error.errno == errno.EINVAL:
                    os.unlink(self.path.name, dir_fd=folder)
                    message = _about_swap(log)
                    reason = f": {message}" if message else ""
                    hint = "Set `swap.file` to a path on another file system. For the kernel's messages: journalctl --dmesg --lines=20"
                    raise Failure(f"the kernel does not swap to {self.path}{reason}; the file was deleted", hint=hint) from error
                if error.errno != errno.EBUSY:  # EBUSY: it is active already, which is checked below
                    raise _failed(f"{self.path} could not be turned on", error) from error
            if not _area(self.path):
                raise Failure(f"{self.path} is on, but /proc/swaps does not show it by that name", hint="Check it with: swapon --show")


@dataclass(frozen=True)
class TurnOff:
    """The step that reads swapped out memory back from a swapfile and deactivates it."""

    path: Path

    def describe(self) -> str:
        """Describe the step in one line."""
        return f"turn off {self.path}"

    def run(self) -> None:
        """Deactivate the file. This takes as long as reading the swapped out memory; if it is interrupted, the file stays active."""
        with _ours(self.path):
            if not (area := _area(self.path)):
                return
            try:
                with _watched(area):
                    libc.swapoff(str(self.path))
            except PermissionError as error:
                raise not_permitted() from error
            except OSError as error:
                if error.errno == errno.ENOMEM:
                    raise Failure(
                        f"memory swapped out to {self.path} does not fit in RAM", hint="Stop the models and try again."
                    ) from error
                raise _failed(f"{self.path} could not be turned off", error) from error


@dataclass(frozen=True)
class DeleteSwapfile:
    """The step that deletes an inactive swapfile."""

    path: Path

    def describe(self) -> str:
        """Describe the step in one line."""
        return f"delete {self.path}"

    def run(self) -> None:
        """Delete the file; the kernel refuses that while it is active."""
        with _ours(self.path) as folder:
            os.unlink(self.path.name, dir_fd=folder)
            os.fsync(folder)


@dataclass(frozen=True)
class RenameSwapfile:
    """The step that renames an inactive swapfile to its configured path."""

    path: Path
    to: Path  # in the same folder

    def describe(self) -> str:
        """Describe the step in one line."""
        return f"rename {self.path} to {self.to}"

    def run(self) -> None:
        """Rename the file. Raises FileExistsError if the new name exists."""
        with _ours(self.path) as folder:
            libc.rename_new(folder, self.path.name, self.to.name)
            os.fsync(folder)


@contextmanager
def _ours(path: Path) -> Iterator[int]:
    """Yield a descriptor of the folder, if the file is a swapfile of vllm-safe; otherwise raise Failure.

    Only root can change the folders on the path, so that `path` keeps naming the same file.
    """
    try:
        with swapfile_facts.open_candidate(path) as (folder, handle):
            if reason := swapfile_facts.why_foreign(handle):
                raise Failure(f"{path} is not a swapfile of vllm-safe ({reason}): left as it is")
            yield folder
    except OSError as error:
        raise _failed(f"{path} is left as it is", error) from error


def _area(path: Path) -> SwapArea | None:
    """Return the entry of the file in /proc/swaps, or None if it is not active."""
    return next((area for area in read_swaps() if area.path == str(path)), None)


@contextmanager
def _watched(area: SwapArea) -> Iterator[None]:
    """Show the progress while the body calls swapoff, which blocks this thread (Ctrl-C interrupts it)."""
    over = threading.Event()

    def watch() -> None:
        with Progress(f"turning off {area.path}", area.used) as progress:
            while not over.wait(1.0):
                now = _area(Path(area.path))
                progress.update(area.used - now.used if now else area.used)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


@contextmanager
def _kernel_log() -> Iterator[int]:
    """Yield a descriptor of the kernel's log from now on, or -1. swapon only returns EINVAL, and the reason is in the log."""
    try:
        log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        yield -1
        return
    try:
        os.lseek(log, 0, os.SEEK_END)
        yield log
    finally:
        os.close(log)


def _about_swap(log: int) -> str:
    """Return the kernel's last message about a swapfile since the log was opened, or ""."""
    message = ""
    try:
        while record := os.read(log, 8192):  # one record for each read(2): "priority,number,time,flags;text"
            text = record.decode(errors="replace").partition(";")[2].partition("\n")[0]
            message = text if "swap" in text else message
    except OSError:  # EAGAIN: no further record; EBADF: no log
        pass
    return message


def _failed(what: str, error: OSError) -> Failure:
    """Return the failure for an error of the kernel without a message of its own, with a hint where there is one."""
    hints = {
        errno.ENOSPC: "Free some space on that file system, or lower `swap.size`.",
        errno.EDQUOT: "Free some space on that file system, or lower `swap.size`.",
        errno.EFBIG: "That file system does not support files of this size: lower `swap.size`, or set `swap.file` to another one.",
        errno.EROFS: "That file system is mounted read-only: set `swap.file` to another one.",
        errno.EOPNOTSUPP: "Set `swap.file` to a path on ext4, xfs or btrfs.",
        errno.EIO: "The disk has errors: see journalctl --dmesg.",
        errno.EEXIST: "Another program has just created that file. Run the command again.",
        errno.EACCES: "Run it as root.",
    }
    return Failure(f"{what}: {os.strerror(error.errno or 0)}", hint=hints.get(error.errno or 0, ""))
