"""Tests of the steps on real unnamed files and in real folders; only swapon and swapoff are faked."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vllm_safe.common import libc
from vllm_safe.common.errors import Failure
from vllm_safe.common.sizes import MIB
from vllm_safe.host.host_facts import SwapArea
from vllm_safe.swap import swap_allocation
from vllm_safe.swap import swapfile_steps as steps
from vllm_safe.swap.swapfile_facts import read_candidate
from vllm_safe.swap.swapfile_steps import DeleteSwapfile, MakeSwapfile, RenameSwapfile, TurnOff, TurnOn


class Areas:
    """A fake of the kernel's list of swap areas; `swapon` and `swapoff` raise `error` if it is set."""

    def __init__(self) -> None:
        self.on: dict[str, int] = {}
        self.error: int | None = None
        self.calls: list[str] = []

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if self.error:
            raise OSError(self.error, os.strerror(self.error))

    def swapon(self, path: str) -> None:
        """Add an area under the name of the descriptor, as the kernel does."""
        self._called("swapon")
        self.on[os.path.realpath(path)] = 0

    def swapoff(self, path: str) -> None:
        """Remove the area under the name of the descriptor."""
        self._called("swapoff")
        del self.on[os.path.realpath(path)]

    def read(self) -> tuple[SwapArea, ...]:
        """Return the areas as /proc/swaps lists them."""
        return tuple(SwapArea(path, "file", MIB - 4096, used) for path, used in self.on.items())


@pytest.fixture
def areas(monkeypatch: pytest.MonkeyPatch) -> Areas:
    areas = Areas()
    monkeypatch.setattr(libc, "swapon", areas.swapon)
    monkeypatch.setattr(libc, "swapoff", areas.swapoff)
    monkeypatch.setattr(steps, "read_swaps", areas.read)
    return areas


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "swapfile"


def failing(code: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("size", [MIB, 5 * MIB + 4096])
def test_made_whole_and_private(path: Path, size: int, write: bool) -> None:  # noqa: FBT001 - a parameter of the test
    umask = os.umask(0)
    try:
        MakeSwapfile(path, size, write=write).run()
    finally:
        os.umask(umask)
    info = path.stat()
    assert (info.st_mode & 0o7777, info.st_size, info.st_nlink) == (0o600, size, 1)
    assert info.st_blocks * 512 >= size
    file = read_candidate(path)
    assert file
    assert not file.foreign
    assert list(path.parent.iterdir()) == [path]


def test_what_is_there_is_not_overwritten(path: Path) -> None:
    path.write_text("mine")
    with pytest.raises(Failure, match="File exists"):
        MakeSwapfile(path, MIB).run()
    assert path.read_text() == "mine"


def test_a_link_that_is_there_is_not_followed(path: Path) -> None:
    path.symlink_to(target := path.with_name("target"))
    with pytest.raises(Failure, match="File exists"):
        MakeSwapfile(path, MIB).run()
    assert not target.exists()


def test_zeros_are_written_where_the_file_system_cannot_allocate(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libc, "fallocate", failing(errno.EOPNOTSUPP))
    monkeypatch.setattr(swap_allocation, "_FLUSH", 4 * MIB)
    MakeSwapfile(path, 9 * MIB).run()
    assert path.stat().st_blocks * 512 >= 9 * MIB


@pytest.mark.parametrize(
    ("code", "hint"), [(errno.ENOSPC, "Free some space"), (errno.EFBIG, "lower `swap.size`"), (errno.EIO, "journalctl"), (errno.EINVAL, "")]
)
def test_an_error_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch, code: int, hint: str) -> None:
    monkeypatch.setattr(libc, "fallocate", failing(code))
    with pytest.raises(Failure, match=os.strerror(code)) as caught:
        MakeSwapfile(path, MIB).run()
    assert hint in caught.value.hint
    assert list(path.parent.iterdir()) == []


def test_an_error_half_way_through_writing_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swap_allocation, "_FLUSH", 4 * MIB)
    monkeypatch.setattr(os, "fdatasync", failing(errno.ENOSPC))
    with pytest.raises(Failure, match="No space left"):
        MakeSwapfile(path, 32 * MIB, write=True).run()
    assert list(path.parent.iterdir()) == []


def test_holes_are_refused_and_leave_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libc, "fallocate", lambda file, offset, length: os.ftruncate(file, offset + length))
    with pytest.raises(Failure, match="has holes"):
        MakeSwapfile(path, MIB).run()
    assert list(path.parent.iterdir()) == []


def test_ctrl_c_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(libc, "fallocate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        MakeSwapfile(path, MIB).run()
    assert list(path.parent.iterdir()) == []


KILLED_WHILE_WRITING = """
import os, sys
from pathlib import Path
from vllm_safe.swap import swap_allocation
from vllm_safe.swap.swapfile_steps import MakeSwapfile
def ready(file):
    print("half", os.fstat(file).st_blocks, flush=True)
    sys.stdin.read()
swap_allocation._mkswap = ready
MakeSwapfile(Path(sys.argv[1]), 1 << 20, write=True).run()
"""


def test_kill_9_leaves_nothing(path: Path) -> None:
    command = [sys.executable, "-c", KILLED_WHILE_WRITING, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]) as process:
        assert process.stdout
        word, blocks = process.stdout.readline().split()
        assert word == "half"
        assert int(blocks) > 0
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert list(path.parent.iterdir()) == []


def test_nothing_is_made_in_a_folder_that_others_may_write(path: Path) -> None:
    path.parent.chmod(0o777)
    with pytest.raises(Failure, match="others could change"):
        MakeSwapfile(path, MIB).run()
    assert list(path.parent.iterdir()) == []


def test_turned_on_and_seen(path: Path, areas: Areas) -> None:
    MakeSwapfile(path, MIB).run()
    TurnOn(path).run()
    assert areas.on == {str(path): 0}


def test_one_that_is_on_already_is_no_error(path: Path, areas: Areas) -> None:
    MakeSwapfile(path, MIB).run()
    areas.on[str(path)] = 0
    areas.error = errno.EBUSY
    TurnOn(path).run()


def test_one_that_the_kernel_does_not_take_is_deleted(path: Path, areas: Areas) -> None:
    MakeSwapfile(path, MIB).run()
    areas.error = errno.EINVAL
    with pytest.raises(Failure, match="the kernel does not swap to"):
        TurnOn(path).run()
    assert not path.exists()


def test_a_process_that_may_not_is_told_of_size_none_and_keeps_the_file(path: Path, areas: Areas) -> None:
    MakeSwapfile(path, MIB).run()
    areas.error = errno.EPERM
    with pytest.raises(Failure) as caught:
        TurnOn(path).run()
    assert "swap.size: none" in caught.value.hint
    assert path.exists()


def test_swapon_that_proc_does_not_show_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch, areas: Areas) -> None:
    MakeSwapfile(path, MIB).run()
    monkeypatch.setattr(steps, "read_swaps", tuple)
    with pytest.raises(Failure, match="/proc/swaps does not show it"):
        TurnOn(path).run()
    assert areas.calls == ["swapon"]


def test_turned_off(path: Path, areas: Areas) -> None:
    MakeSwapfile(path, MIB).run()
    TurnOff(path).run()
    assert areas.calls == []  # it is off
    TurnOn(path).run()
    TurnOff(path).run()
    assert areas.on == {}


def test_swapoff_without_enough_ram_is_said(path: Path, areas: Areas) -> None:
    MakeSwapfile(path, MIB).run()
    TurnOn(path).run()
    areas.error = errno.ENOMEM
    with pytest.raises(Failure, match="does not fit in RAM"):
        TurnOff(path).run()
    assert path.exists()


@pytest.mark.parametrize("step", [TurnOn, TurnOff, DeleteSwapfile, lambda path: RenameSwapfile(path, path.with_name("new"))])
def test_a_foreign_file_is_never_touched(path: Path, areas: Areas, step: Callable[[Path], TurnOn]) -> None:
    path.write_text("mine")
    areas.on[str(path)] = 0
    with pytest.raises(Failure, match="not a swapfile of vllm-safe"):
        step(path).run()
    assert path.read_text() == "mine"
    assert areas.calls == []


@pytest.mark.parametrize("step", [TurnOn, TurnOff, DeleteSwapfile])
def test_a_file_that_is_gone_is_a_clear_error(path: Path, areas: Areas, step: type[DeleteSwapfile]) -> None:
    with pytest.raises(Failure, match="No such file"):
        step(path).run()
    assert areas.calls == []


def test_deleted(path: Path) -> None:
    MakeSwapfile(path, MIB).run()
    DeleteSwapfile(path).run()
    assert list(path.parent.iterdir()) == []


def test_renamed_but_never_over_something(path: Path) -> None:
    MakeSwapfile(path, MIB).run()
    (other := path.with_name("other")).write_text("mine")
    with pytest.raises(Failure, match="File exists"):
        RenameSwapfile(path, other).run()
    assert other.read_text() == "mine"
    RenameSwapfile(path, new := path.with_name("new")).run()
    assert sorted(path.parent.iterdir()) == [new, other]


def test_the_last_word_of_the_kernel_about_swap_is_the_reason() -> None:
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_DIRECT)  # packets: a read gives what one write gave, as those of /dev/kmsg do
    for text in ("6,1,1,-;EXT4-fs mounted\n", "3,2,2,-;swapon: swapfile has holes\n SUBSYSTEM=x\n", "6,3,3,-;usb 1-1: new\n"):
        os.write(writer, text.encode())
    assert steps._about_swap(reader) == "swapon: swapfile has holes"
    os.close(writer)
    os.close(reader)
    assert steps._about_swap(-1) == ""


def test_what_a_step_says() -> None:
    path = Path("/swapfile")
    assert MakeSwapfile(path, 128 << 30).describe() == "create the swapfile /swapfile of 128 GiB, allocated, readable by root only"
    assert RenameSwapfile(path.with_name("swapfile.new"), path).describe() == "rename /swapfile.new to /swapfile"
