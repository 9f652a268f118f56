"""A folder below an open one is reached only without links."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vllm_safe.common.untrusted_paths import LOOK, open_below


@pytest.fixture
def top(tmp_path: Path) -> int:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/file").write_text("x")
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "a/loop").symlink_to("loop")
    os.mkfifo(tmp_path / "a/pipe")
    return os.open(tmp_path, LOOK | os.O_DIRECTORY)


@pytest.mark.parametrize(("names", "reached"), [([], "."), (["a"], "a"), (["a", "b"], "a/b")])
def test_a_folder_is_reached(top: int, names: list[str], reached: str, tmp_path: Path) -> None:
    assert os.path.samestat(os.fstat(open_below(top, names)), (tmp_path / reached).stat())


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["link"], "symbolic links"),
        (["link", "b"], "symbolic links"),
        (["a", "loop"], "symbolic links"),
        (["a", "none"], "No such file"),
        (["a", "file"], "Not a directory"),
        (["a", "pipe"], "Not a directory"),
        (["a", "file", "b"], "Not a directory"),
    ],
)
def test_nothing_else_is(top: int, names: list[str], why: str) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError, match=why):
        open_below(top, names)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
