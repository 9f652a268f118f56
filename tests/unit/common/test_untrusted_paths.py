"""A folder below an open one is reached only without links."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vllm_safe.common.untrusted_paths import LOOK, find_program, open_below


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


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """Return a folder that others may write, with a program in it, beside a folder that they may not write."""
    for folder in ("theirs/engine-1/bin", "ours"):
        (tmp_path / folder).mkdir(parents=True)
        program = tmp_path / folder / "serve"
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    (tmp_path / "theirs/data").write_text("")
    (tmp_path / "theirs/data").chmod(0o644)
    (tmp_path / "theirs").chmod(0o777)
    return tmp_path / "theirs"


@pytest.mark.parametrize(
    ("link", "to", "path", "found"),
    [
        ("current", "engine-1", "current/bin/serve", True),  # below the folder: whoever made the link
        ("current", "engine-1", "current/bin/none", False),
        ("current", "current", "current/bin/serve", False),  # for ever round
        ("current", "{root}/ours", "current/serve", None),
        ("current", "../ours", "current/serve", None),
        ("current", "{root}/none", "current/serve", None),  # not even to look whether it is there
        ("serve", "/bin/sh", "serve", None),
        ("../ours/link", "{root}/theirs/engine-1/bin/serve", "../ours/link", True),  # ours may lead anywhere
        ("../ours/link", "../theirs/engine-1", "../ours/link/bin/serve", True),
        ("x", "y", "data", False),
        ("x", "y", "engine-1", False),
        ("x", "y", "data/serve", False),
    ],
)
def test_a_program_is_found_without_a_link_of_others_that_leads_elsewhere(
    theirs: Path, link: str, to: str, path: str, *, found: bool | None
) -> None:
    (theirs / link).symlink_to(to.format(root=theirs.parent))
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert find_program(theirs / path) is found
    assert len(list(Path("/proc/self/fd").iterdir())) == before
