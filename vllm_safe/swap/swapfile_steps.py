"""Steps that make, use and take away a swapfile. Wherever they are broken off, there is a whole swapfile or none.

A swapfile is made without a name (O_TMPFILE) and linked into place when it is ready: until then a crash leaves nothing behind. A file is
looked at again right before it is deleted, moved or swapped to, and touched only if it is ours.
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
    """What is said when swapon would be, or was, refused to this process."""
    hint = "`swap.size: none` uses the swap that is on. A container has its host's: run `vllm-safe swap create` there."
    return Failure("this process may not turn swap on or off (is it in a container?)", hint=hint)


@dataclass(frozen=True)
class MakeSwapfile:
    """Make a swapfile that is not on yet. `size` in bytes; `write`: fill it instead of allocating; `nocow`: as btrfs needs it."""

    path: Path
    size: int
    nocow: bool = False
    write: bool = False

    def describe(self) -> str:
        """The step in one line."""
        return (
            f"make the swapfile {self.path} of {format_size(self.size)}, {'written' if self.write else 'allocated'}, readable by root only"
        )

    def run(self) -> None:
        """Make it. Raises Failure; then nothing is left of it. FileExistsError is one: what is there is not overwritten."""
        folder = open_trusted_folder(self.path.parent)
        try:
            handle = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, swapfile_facts.MODE, dir_fd=folder)
            try:
                allocate_swap_space(handle, self.size, self.path, nocow=self.nocow, write=self.write)
                os.link(f"/proc/self/fd/{handle}", self.path.name, dst_dir_fd=folder)
                os.fsync(handle)  # again: btrfs writes the metadata of a file only when it has a name
                os.fsync(folder)
            finally:
                os.close(handle)
        except OSError as error:
            raise _failed(f"the swapfile {self.path} could not be made, and nothing is left of it", error) from error
        finally:
            os.close(folder)


@dataclass(frozen=True)
class TurnOn:
    """Start to use a swapfile."""

    path: Path

    def describe(self) -> str:
        """The step in one line."""
        return f"turn on {self.path}"

    def run(self) -> None:
        """Turn it on and see that it is. A file that the kernel does not take as swap is deleted: it could only take space."""
        with _ours(self.path) as folder, _kernel_log() as log:
            try:
                libc.swapon(str(self.path))
            except PermissionError as error:
                raise not_permitted() from error
            except OSError as error:
                if error.errno == errno.EINVAL:
                    os.unlink(self.path.name, dir_fd=folder)
                    said = _about_swap(log)
                    reason = f": {said}" if said else ""
                    hint = "Set `swap.file` to a path on another file system. The kernel's words: journalctl --dmesg --lines=20"
                    raise Failure(f"the kernel does not swap to {self.path}{reason}; deleted it again", hint=hint) from error
                if error.errno != errno.EBUSY:  # EBUSY: it is on, see below
                    raise _failed(f"{self.path} could not be turned on", error) from error
            if not _area(self.path):
                raise Failure(f"{self.path} is on, but /proc/swaps does not show it by that name", hint="See it with: swapon --show")


@dataclass(frozen=True)
class TurnOff:
    """Bring back what is swapped out to a swapfile, and stop using it."""

    path: Path

    def describe(self) -> str:
        """The step in one line."""
        return f"turn off {self.path}"

    def run(self) -> None:
        """Turn it off. Takes as long as reading what is swapped out; when it is interrupted the file stays on."""
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
                        f"what is swapped out to {self.path} does not fit in RAM", hint="Stop the models and try again."
                    ) from error
                raise _failed(f"{self.path} could not be turned off", error) from error


@dataclass(frozen=True)
class DeleteSwapfile:
    """Delete a swapfile that is off."""

    path: Path

    def describe(self) -> str:
        """The step in one line."""
        return f"delete {self.path}"

    def run(self) -> None:
        """Delete it; the kernel refuses while it is on."""
        with _ours(self.path) as folder:
            os.unlink(self.path.name, dir_fd=folder)
            os.fsync(folder)


@dataclass(frozen=True)
class RenameSwapfile:
    """Give a swapfile that is off the name that the config has for it."""

    path: Path
    to: Path  # in the same folder

    def describe(self) -> str:
        """The step in one line."""
        return f"rename {self.path} to {self.to}"

    def run(self) -> None:
        """Rename it. FileExistsError when something has the name."""
        with _ours(self.path) as folder:
            libc.rename_new(folder, self.path.name, self.to.name)
            os.fsync(folder)


@contextmanager
def _ours(path: Path) -> Iterator[int]:
    """A descriptor of the folder, if the file is ours. Only root can change the folders on the way: `path` stays that file."""
    try:
        with swapfile_facts.open_candidate(path) as (folder, handle):
            if reason := swapfile_facts.why_foreign(handle):
                raise Failure(f"{path} is not a swapfile of vllm-safe ({reason}): left as it is")
            yield folder
    except OSError as error:
        raise _failed(f"{path} is left as it is", error) from error


def _area(path: Path) -> SwapArea | None:
    """The line of /proc/swaps about the file, if it is on."""
    return next((area for area in read_swaps() if area.path == str(path)), None)


@contextmanager
def _watched(area: SwapArea) -> Iterator[None]:
    """Show how much is still swapped out while swapoff has this thread, where it hears Ctrl-C."""
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
    """A descriptor of the kernel's log from here on, or -1: swapon says only "Invalid argument", and the reason there."""
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
    """What the kernel has said about a swapfile since the log was opened, or ""."""
    said = ""
    try:
        while record := os.read(log, 8192):  # one record for each read(2): "priority,number,time,flags;text"
            text = record.decode(errors="replace").partition(";")[2].partition("\n")[0]
            said = text if "swap" in text else said
    except OSError:  # EAGAIN: that was all; EBADF: no log
        pass
    return said


def _failed(what: str, error: OSError) -> Failure:
    """The words for an error of the kernel that has no better ones, with a way out where there is one."""
    hints = {
        errno.ENOSPC: "Make room on that file system, or lower `swap.size`.",
        errno.EDQUOT: "Make room on that file system, or lower `swap.size`.",
        errno.EFBIG: "That file system has no files of this size: lower `swap.size`, or set `swap.file` elsewhere.",
        errno.EROFS: "That file system is mounted read-only: set `swap.file` elsewhere.",
        errno.EOPNOTSUPP: "Set `swap.file` to a path on ext4, xfs or btrfs.",
        errno.EIO: "The disk has errors: see journalctl --dmesg.",
        errno.EEXIST: "Something else has made that file just now. Run it again.",
        errno.EACCES: "Run it as root.",
    }
    return Failure(f"{what}: {os.strerror(error.errno or 0)}", hint=hints.get(error.errno or 0, ""))
