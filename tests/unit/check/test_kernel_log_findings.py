"""Findings on the kernel's messages about cards, in the cases that no machine of tests/golden/check has."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_safe.check.kernel_log_findings import KernelLog, check_kernel_log
from vllm_safe.contract.recorded_run import Event

CARDS = ({"pci": "0000:01:00.0", "name": "RTX 3060", "bridges": []},)


def log(*data: dict[str, Any], whole: bool = True) -> list[tuple[str, str]]:
    events = tuple(Event(100.0, "nvidia", "a line", {"times": 1, **each}) for each in data)
    return [(str(finding.level), finding.what) for finding in check_kernel_log(KernelLog(events, CARDS, 160.0, whole=whole))]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"kind": "xid", "xid": 48, "pci": "0000:01:00"}, "GPU 0 (0000:01:00): a double-bit ECC error of its memory"),
        ({"kind": "xid", "xid": 999, "pci": "0000:01:00", "times": 3}, "unknown Xid (Xid 999, 3 times, 1 min ago)"),
        ({"kind": "lost", "pci": ""}, "the GPUs: it has fallen off the bus"),
        ({"kind": "init", "pci": "0000:05:00"}, "the GPU at 0000:05:00: the driver could not initialise it (1 min ago)"),
        ({"kind": "link", "severity": "fatal", "pci": "0000:01:00"}, "the PCIe link of its slot has failed"),
        ({"kind": "link", "severity": "correctable", "pci": "0000:01:00"}, "had errors, which were corrected"),
    ],
)
def test_each_message_is_a_warning_with_what_it_means(data: dict[str, Any], words: str) -> None:
    found = log(data)
    assert [(level, words in what) for level, what in found] == [("warn", True)]


@pytest.mark.parametrize("data", [{"kind": "xid", "xid": 45, "pci": "0000:01:00"}, {"kind": "mismatch"}, {"kind": "module"}])
def test_consequences_and_what_the_driver_is_judged_by_are_left_out(data: dict[str, Any]) -> None:
    assert [level for level, _ in log(data)] == ["pass"]


def test_a_lost_card_is_told_once() -> None:
    assert len(log({"kind": "xid", "xid": 79, "pci": "0000:01:00"}, {"kind": "lost", "pci": "0000:01:00"})) == 1


def test_a_journal_that_could_not_be_read_is_not_taken_for_an_empty_one() -> None:
    assert log(whole=False) == [("warn", "the kernel's messages about the GPUs in this boot could not be read")]
    assert len(log({"kind": "xid", "xid": 79, "pci": ""}, whole=False)) == 2
