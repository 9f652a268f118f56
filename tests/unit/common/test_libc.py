"""The system calls of libc.py: their effects, and that their errors are those of Python's own calls."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import psutil
import pytest

from vllm_safe.common import libc


def test_fallocate_allocates_and_says_its_errors(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b") as file:
        libc.fallocate(file.fileno(), 0, 8192)
        libc.fallocate(file.fileno(), 8192, 4096)
        assert os.fstat(file.fileno()).st_size == 12288
        with pytest.raises(OSError, match="Invalid argument"):
            libc.fallocate(file.fileno(), 0, -1)


def test_swapoff_of_what_is_no_swap_is_an_error(tmp_path: Path) -> None:
    (path := tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"Invalid argument|Operation not permitted"):
        libc.swapoff(str(path))


@pytest.mark.parametrize(("code", "answer"), [(errno.EPERM, False), (errno.ENOENT, True), (errno.EINVAL, True)])
def test_whether_swap_may_be_turned_on_is_asked_without_turning_it_on(monkeypatch: pytest.MonkeyPatch, code: int, answer: bool) -> None:  # noqa: FBT001 - a parameter of the test
    asked = []

    def swapoff(path: str) -> None:
        asked.append(path)
        raise OSError(code, "")

    monkeypatch.setattr(libc, "swapoff", swapoff)
    assert libc.may_swap() is answer
    assert asked == [""]


def test_rename_new_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    folder = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(FileExistsError):
            libc.rename_new(folder, "a", "b")
        libc.rename_new(folder, "a", "c")
    finally:
        os.close(folder)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"b": "b", "c": "a"}


@pytest.mark.parametrize("pattern", ["", "^(VLLM::.*|vllm|python3?)$", "a{3}", "[[:digit:]]+"])
def test_a_pattern_that_regcomp_compiles_has_no_error(pattern: str) -> None:
    assert libc.regex_error(pattern) is None


@pytest.mark.parametrize(("pattern", "error"), [("(a", "Unmatched"), ("a{40000}", "too big"), ("[z-a]", "range"), ("a{2,1}", "content")])
def test_what_regcomp_has_against_a_pattern_is_said_in_its_words(pattern: str, error: str) -> None:
    assert error in (libc.regex_error(pattern) or "")


def test_the_priority_of_a_thread_at_the_disks() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        libc.set_io_priority(process.pid, 3 << 13)
        assert libc.io_priority(process.pid) >> 13 == psutil.Process(process.pid).ionice().ioclass == psutil.IOPRIO_CLASS_IDLE
        process.kill()
    with pytest.raises(ProcessLookupError):
        libc.io_priority(2**22 + 1)


def test_a_machine_whose_system_calls_are_not_known_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libc, "_IOPRIO_CALLS", {})
    with pytest.raises(OSError, match="not known"):
        libc.io_priority(0)
