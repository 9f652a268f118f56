"""Tests of recognising a swapfile of vllm-safe, on real files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vllm_safe.common.sizes import MIB
from vllm_safe.host.host_facts import Host, SwapArea
from vllm_safe.swap import swapfile_facts
from vllm_safe.swap.swapfile_steps import MakeSwapfile


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    path = tmp_path / "swapfile"
    MakeSwapfile(path, MIB).run()
    return path


def foreign(path: Path) -> str:
    file = swapfile_facts.read_candidate(path)
    assert file
    return file.foreign


def patch(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def test_ours_is_known_by_its_label(ours: Path) -> None:
    assert swapfile_facts.read_candidate(ours) == swapfile_facts.CandidateFile(ours, MIB)
    assert swapfile_facts.read_candidate(ours.with_name("other")) is None


def test_another_label_is_somebody_elses(ours: Path) -> None:
    patch(ours, 1052, b"swap".ljust(16, b"\0"))
    assert foreign(ours) == "swap space with another label"


def test_a_label_that_only_starts_like_ours_is_somebody_elses(ours: Path) -> None:
    patch(ours, 1052, b"vllm-safer")
    assert foreign(ours) == "swap space with another label"


def test_a_hibernated_system_is_not_swap_space(ours: Path) -> None:
    patch(ours, swapfile_facts.PAGE - 10, b"S1SUSPEND\0")
    assert foreign(ours) == "not swap space"


@pytest.mark.parametrize("content", [b"", b"notes", bytes(MIB)])
def test_an_ordinary_file_is_not_ours(tmp_path: Path, content: bytes) -> None:
    (path := tmp_path / "swapfile").write_bytes(content)
    assert foreign(path) == "not swap space"


def test_a_mode_that_lets_others_read_is_not_ours(ours: Path) -> None:
    ours.chmod(0o644)
    assert "mode 0644" in foreign(ours)


def test_a_hard_link_is_not_ours(ours: Path) -> None:
    os.link(ours, ours.with_name("second"))
    assert foreign(ours) == "a file with several hard links"


def test_a_link_to_ours_is_not_followed(ours: Path) -> None:
    (link := ours.with_name("link")).symlink_to(ours)
    assert foreign(link)
    (dangling := ours.with_name("dangling")).symlink_to("nowhere")
    assert foreign(dangling)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(path := tmp_path / "swapfile")
    assert foreign(path) == "not a regular file"


def test_a_folder_is_not_ours(tmp_path: Path) -> None:
    (path := tmp_path / "swapfile").mkdir()
    assert foreign(path) == "not a regular file"


def test_nothing_is_ours_where_others_may_write(ours: Path) -> None:
    ours.parent.chmod(0o777)
    assert "others could change" in foreign(ours)


def test_links_in_the_folder_are_followed_to_the_path_that_the_kernel_shows(ours: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    (link := tmp_path_factory.mktemp("links") / "data").symlink_to(ours.parent)
    facts = swapfile_facts.read_swap(link / "swapfile", Host())
    assert facts.path == ours
    assert swapfile_facts.CandidateFile(ours, MIB) in facts.files


def test_files_that_are_swapped_to_elsewhere_are_looked_at(ours: Path) -> None:
    area = SwapArea(str(ours), "file", MIB, 0)
    gone = SwapArea(f"{ours.parent}/gone (deleted)", "file", MIB, 0)
    facts = swapfile_facts.read_swap(ours.parent / "other/swapfile", Host(swaps=(area, gone)))
    assert swapfile_facts.CandidateFile(ours, MIB) in facts.files
    assert "other" in facts.folder.problem


def test_space_is_that_of_the_file_system(tmp_path: Path) -> None:
    folder = swapfile_facts.read_swap(tmp_path / "swapfile", Host()).folder
    assert not folder.problem
    assert 0 < folder.free <= folder.total


def group(path: Path, limit: str, swapped: int) -> None:
    path.mkdir(parents=True)
    (path / "memory.max").write_text(f"{limit}\n")
    (path / "memory.swap.current").write_text(f"{swapped}\n")


def test_swapped_out_memory_with_a_limit_is_counted_once_at_the_top(tmp_path: Path) -> None:
    group(tmp_path / "vllm.slice", "1000", 300)
    group(tmp_path / "vllm.slice/vllm@demo.service", "500", 300)
    group(tmp_path / "system.slice", "max", 70)
    group(tmp_path / "system.slice/bound.service", "10", 50)
    group(tmp_path / "system.slice/free.service", "max", 20)
    (tmp_path / "cgroup.procs").write_text("1\n")
    (tmp_path / "without-the-controller").mkdir()
    assert swapfile_facts._bound(tmp_path) == 350
    assert swapfile_facts._bound(tmp_path / "absent") == 0
