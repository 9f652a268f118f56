"""The checklist of the machine as a whole: each trouble is one line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.builders.checked_machines import EARLYOOM, GOOD, HOST, KEPT, SEEN, disks
from vllm_safe.check.checks import check_machine
from vllm_safe.common.errors import Failure
from vllm_safe.driver.card_facts import NvmlCard
from vllm_safe.driver.driver_facts import Driver, Nvml
from vllm_safe.host.host_facts import Mount
from vllm_safe.host.rig_facts import HardwareFacts

OLD_DRIVER = Driver(nvml=Nvml(0, driver="550.163.01", cuda=(12, 4), cards=(NvmlCard("H200", (9, 0)),)))


def test_a_good_machine_passes_every_line() -> None:
    found = check_machine(GOOD)
    assert {finding.level for finding in found} == {"pass"}
    assert all(not finding.do_next for finding in found)


UNIFIED = Mount("/sys/fs/cgroup", "cgroup2", "cgroup2", ("rw",))


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({"host": replace(HOST, cgroup2=False)}, "fail", "cgroup v2"),
        ({"host": replace(HOST, pressure=False)}, "warn", "pressure stall information"),
        ({"host": replace(HOST, mounts=(UNIFIED,))}, "warn", "memory_recursiveprot"),
        ({"host": replace(HOST, swaps=())}, "warn", "asks for 128 GiB of swap"),
        ({"swap_refused": Failure("no room", hint="make room")}, "fail", "no room"),
        ({"seen": replace(SEEN, units={"earlyoom.service": EARLYOOM})}, "warn", "system.slice"),
        ({"seen": replace(SEEN, units={**SEEN.units, "user.slice": {"MemoryMin": "1"}})}, "warn", "for user.slice"),
        ({"seen": replace(SEEN, units=KEPT)}, "warn", "earlyoom is not installed"),
        ({"seen": replace(SEEN, units=KEPT | {"earlyoom.service": EARLYOOM | {"ActiveState": "failed"}})}, "fail", "is not running"),
        ({"seen": replace(SEEN, earlyoom=("-r", "3600"))}, "fail", "arguments that differ"),
        ({"seen": replace(SEEN, admin_earlyoom="-m 10")}, "warn", "overridden"),
        ({"seen": replace(SEEN, overcommit=2)}, "fail", "overcommit"),
        ({"seen": replace(SEEN, disks=disks(sda="mq-deadline", sdb="none"))}, "warn", "disk sdb uses the I/O scheduler none"),
        ({"seen": replace(SEEN, compiler=False)}, "warn", "no C++ compiler"),
        ({"seen": replace(SEEN, headers=False)}, "warn", "Python.h"),
        ({"seen": replace(SEEN, driver=Driver())}, "warn", "no NVIDIA driver is installed"),
        ({"seen": replace(SEEN, driver=OLD_DRIVER, cuda=(13, 0))}, "fail", "supports CUDA 12.4"),
    ],
)
def test_each_trouble_is_one_line_with_a_way_out(changes: dict[str, Any], level: str, words: str) -> None:
    found = [finding for finding in check_machine(replace(GOOD, **changes)) if finding.level != "pass"]
    assert [str(finding.level) for finding in found] == [level]
    assert words in found[0].what
    assert found[0].do_next


def test_the_findings_on_the_rig_follow_those_on_the_machine() -> None:
    found = check_machine(replace(GOOD, seen=replace(SEEN, rig=HardwareFacts(threads=4, cores=4))))
    assert found[-2].what == "processor: 4 cores, no hyper-threads"
