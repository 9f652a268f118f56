"""Tests of reading the end of the journal, with a program in place of journalctl."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vllm_safe.bundle import journal_facts
from vllm_safe.bundle.journal_facts import JournalTail, read_kernel_journal, read_unit_journal


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


def put(folder: Path, script: str) -> None:
    (folder / "journalctl").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "journalctl").chmod(0o755)


def test_its_units_and_the_kernel_are_asked_for_without_the_hosts_name(bin_folder: Path) -> None:
    put(bin_folder, "printf '%s\\n' \"$@\"")
    words = read_unit_journal("qwen72b").text.splitlines()
    assert {"--no-hostname", "--unit=vllm@qwen72b", "--unit=vllm-safe-record@qwen72b", "--unit=vllm-safe-guard"} <= set(words)
    words = read_kernel_journal().text.splitlines()
    assert {"--no-hostname", "--dmesg"} <= set(words)
    assert not [word for word in words if word.startswith("--unit")]


def test_a_journal_that_does_not_answer_is_not_waited_for(bin_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(bin_folder, "echo begun; exec sleep 300")
    monkeypatch.setattr(journal_facts, "_PATIENCE", 0.5)
    assert read_unit_journal("x") == JournalTail("begun\n", whole=False)
