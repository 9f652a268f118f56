"""The actions of the guard on a model, and their reversal: writes to the files of its cgroup, never outside of the models' slice.

The previous values are kept in an extended attribute of the cgroup: it survives a kill of the guard, and disappears with the cgroup.
systemd may write the same files (on a reload, or when another model starts): `hold` then writes again, and restores systemd's value later.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress

from vllm_safe.common import libc
from vllm_safe.common.kernfs import CGROUPS, MODELS_SLICE, read_kernel_file
from vllm_safe.guard.guard_decision import GuardAction

MARK = "user.vllm-safe.guard"  # attribute of a cgroup with its previous values: "cpu.weight=10 io.weight=1 ioprio=0 frozen=1"
# No file, but the I/O priority of each thread: mq-deadline, Debian's scheduler for hard disks, ignores weights and obeys I/O classes.
_PRIORITY = "ioprio"
LEAST = {"cpu.weight": "1", "io.weight": "1", "io.bfq.weight": "1", _PRIORITY: str(libc.IO_CLASSES["idle"])}


class CgroupControl:
    """Control over the cgroups below `root`."""

    def __init__(self, root: str = CGROUPS) -> None:
        self._root = root
        self._held: dict[str, dict[str, str]] = {}  # by cgroup: file -> the value that it must keep

    def do(self, act: GuardAction) -> str:
        """Carry out an action. Return the reason if it failed, or "". A cgroup that no longer exists is not a failure."""
        group = f"{MODELS_SLICE}/{act.unit}"
        if "/" in act.unit or act.unit.startswith("."):
            return f"{act.unit} is not a unit of {MODELS_SLICE}"
        try:
            if act.kind == "squeeze":
                # The slice's weights count against the operating system, the unit's own weights among the models.
                trouble = [*self._hold_at(MODELS_SLICE, LEAST), *self._hold_at(group, LEAST)]
                if trouble and os.path.isdir(f"{self._root}/{group}"):  # noqa: PTH112 - pathlib is 2 MB
                    return f"{act.unit} fully: {'; '.join(trouble)}"
            elif act.kind == "freeze":
                self._mark(group, self._marked(group) | {"frozen": "1"})  # written first: a later guard can tell that the guard froze it
                self._write(group, "cgroup.freeze", "1")
            elif act.kind == "thaw":
                self._thaw(group)
            elif act.kind == "kill":
                self._write(group, "cgroup.kill", "1")
            elif act.kind == "restore":
                self._restore(group)
        except OSError as error:
            if not os.path.isdir(f"{self._root}/{group}"):  # noqa: PTH112 - pathlib is 2 MB
                return ""
            old = act.kind == "kill" and isinstance(error, FileNotFoundError)
            return f"{act.unit}: this kernel has no cgroup.kill" if old else f"{act.unit}: {error}"
        return ""

    def hold(self) -> None:
        """Write values again that another program has overwritten. Never raises: a cgroup or disk may disappear at any time."""
        for group, wanted in list(self._held.items()):
            if not os.path.isdir(f"{self._root}/{group}"):  # noqa: PTH112 - pathlib is 2 MB
                del self._held[group]
            elif any(self._now(group, key) not in {value, ""} for key, value in wanted.items()):
                self._hold_at(group, wanted)
        with suppress(OSError):
            self._release_slice()

    def recover(self) -> list[str]:
        """Reverse the actions that an earlier guard left in force; return the units concerned."""
        found = []
        for group in (MODELS_SLICE, *(f"{MODELS_SLICE}/{name}" for name in _folders(f"{self._root}/{MODELS_SLICE}"))):
            if self._marked(group):
                with suppress(OSError):  # the cgroup disappeared meanwhile
                    self._thaw(group)
                    self._restore(group)
                found.append(group.rpartition("/")[2])
        return found

    def _hold_at(self, group: str, wanted: Mapping[str, str]) -> list[str]:
        """Write these values; return the failures. A failed value is not tried again."""
        mark = self._marked(group)
        there = {key: now for key, value in wanted.items() if (now := self._now(group, key)) and now != value}
        try:
            self._mark(group, mark | there)
        except OSError as error:  # without a mark nothing is changed, since it could not be reversed
            self._held.pop(group, None)
            return [f"{MARK}: {error}"]
        held = self._held[group] = dict(wanted)
        failed = []
        for key in there:
            try:
                self._set(group, key, wanted[key])
            except OSError as error:  # not permitted by this kernel or the sandbox
                del held[key]
                failed.append(f"{key}: {error}")
        return failed

    def _thaw(self, group: str) -> None:
        mark = self._marked(group)
        if mark.pop("frozen", ""):
            self._write(group, "cgroup.freeze", "0")
            self._mark(group, mark)

    def _restore(self, group: str) -> None:
        before = {key: value for key, value in self._marked(group).items() if key != "frozen"}
        for key, value in before.items():
            with suppress(OSError, ValueError):  # a value that cannot be restored must not prevent the others
                self._set(group, key, value)
        self._mark(group, {key: value for key, value in self._marked(group).items() if key == "frozen"})
        self._held.pop(group, None)
        self._release_slice()

    def _release_slice(self) -> None:
        if set(self._held) == {MODELS_SLICE}:
            del self._held[MODELS_SLICE]
            self._restore(MODELS_SLICE)

    def _now(self, group: str, key: str) -> str:
        """Return the present value; "" if there is none: a file that this kernel does not have, or threads that have ended."""
        if key == _PRIORITY:
            with suppress(OSError):  # of the youngest thread, which belongs to the server or inherited its priority
                return str(libc.io_priority(max(self._threads(group), default=-1)))
            return ""
        return read_kernel_file(f"{self._root}/{group}/{key}").partition("\n")[0].rpartition(" ")[2]

    def _set(self, group: str, key: str, value: str) -> None:
        if key == _PRIORITY:
            for thread in self._threads(group):
                with suppress(ProcessLookupError):  # the thread has ended
                    libc.set_io_priority(thread, int(value))
        else:
            self._write(group, key, value)

    def _threads(self, group: str) -> list[int]:
        """Return the thread ids of a cgroup; none for a slice, which contains units instead."""
        return [int(line) for line in read_kernel_file(f"{self._root}/{group}/cgroup.threads").split()]

    def _write(self, group: str, name: str, text: str) -> None:
        file = os.open(f"{self._root}/{group}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(file, text.encode())
        finally:
            os.close(file)

    def _marked(self, group: str) -> dict[str, str]:
        try:
            text = os.getxattr(f"{self._root}/{group}", MARK).decode(errors="replace")
        except OSError:
            return {}
        return {key: value for key, found, value in (word.partition("=") for word in text.split()) if found}

    def _mark(self, group: str, values: Mapping[str, str]) -> None:
        path = f"{self._root}/{group}"
        if values:
            os.setxattr(path, MARK, " ".join(f"{key}={value}" for key, value in values.items()).encode())
        elif self._marked(group):
            os.removexattr(path, MARK)


def _folders(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []
