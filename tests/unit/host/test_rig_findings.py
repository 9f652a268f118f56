"""Findings on the hardware, in the cases that no machine of tests/golden/check has."""

from __future__ import annotations

import pytest

from vllm_safe.common.sizes import GIB
from vllm_safe.host.rig_facts import HardwareFacts, MemoryModule
from vllm_safe.host.rig_findings import check_hardware


@pytest.mark.parametrize(
    ("rig", "level", "words"),
    [
        (HardwareFacts(threads=4), "pass", "processor: 4 CPUs; the kernel does not tell which of them share a core"),
        (HardwareFacts(threads=1, cores=1), "pass", "processor: 1 core, no hyper-threads"),
        (HardwareFacts(), "pass", "RAM: neither firmware nor kernel tells how its modules are placed"),
        (HardwareFacts(hidden=True), "warn", "RAM: only root can read how its modules are placed"),
        (
            HardwareFacts(modules=(MemoryModule("A", 8 * GIB), MemoryModule("B", 16 * GIB))),
            "pass",
            "RAM: 2 modules of 8.0 GiB and 16.0 GiB; the firmware does not tell their channels",
        ),
        (HardwareFacts(huge_pages="always", defrag="madvise"), "pass", "transparent huge pages: always (defrag: madvise)"),
        (HardwareFacts(resume="/dev/sda2", resume_offset=True), "warn", "hibernation is set up (a file on /dev/sda2)"),
    ],
)
def test_one_line_each(rig: HardwareFacts, level: str, words: str) -> None:
    found = {finding.what: finding for finding in check_hardware(rig)}
    line = next((what for what in found if words in what), "")
    assert line, found
    assert str(found[line].level) == level
    assert bool(found[line].do_next) == (level != "pass")


@pytest.mark.parametrize(
    "rig", [HardwareFacts(portable=True, stays_awake=True), HardwareFacts(resume="/dev/sda2", no_hibernation=True), HardwareFacts()]
)
def test_what_the_admin_has_seen_to_is_not_told(rig: HardwareFacts) -> None:
    assert {str(finding.level) for finding in check_hardware(rig)} == {"pass"}
