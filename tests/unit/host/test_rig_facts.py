"""Facts about the hardware around the cards."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders.rigs import FakeModule, dmi_table
from tests.builders.trees import write_tree
from vllm_safe.common.sizes import GIB
from vllm_safe.host.rig_facts import HardwareFacts, MemoryModule, parse_memory_modules, read_hardware


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    assert read_hardware(tmp_path) == HardwareFacts()


def test_cores_and_hyper_threads(tmp_path: Path) -> None:
    cpus = "\n\n".join(f"processor : {n}\nphysical id\t: {n // 4}\ncore id\t\t: {n % 2}" for n in range(8))
    found = read_hardware(write_tree(tmp_path, {"proc/cpuinfo": cpus}))
    assert (found.threads, found.cores) == (8, 4)
    arm = "processor\t: 0\nBogoMIPS\t: 50.00\n\nprocessor\t: 1\nBogoMIPS\t: 50.00\n\nHardware\t: board\n"
    found = read_hardware(write_tree(tmp_path, {"proc/cpuinfo": arm}))
    assert (found.threads, found.cores) == (2, 0)


@pytest.mark.parametrize(
    ("slot", "bank", "channel"),
    [
        ("ChannelA-DIMM0", "BANK 0", "A"),
        ("DIMM 1", "P0 CHANNEL B", "P0 B"),
        ("Controller1-ChannelA-DIMM0", "BANK 2", "CONTROLLER1 A"),
        ("DIMM_B2", "", "B"),
        ("P1_DIMM_C1", "", "P1 C"),
        ("A1", "", ""),  # whose channel could be guessed, and would be wrong on other boards
        ("DIMM 0", "BANK 1", ""),
    ],
)
def test_the_channel_by_what_boards_call_a_slot(slot: str, bank: str, channel: str) -> None:
    found = list(parse_memory_modules(dmi_table([FakeModule(slot, bank, 8192)])))
    assert found == [MemoryModule(slot, 8 * GIB, channel, 2400)]


def test_modules_of_the_firmwares_table(tmp_path: Path) -> None:
    modules = [FakeModule("ChannelA-DIMM0", "BANK 0", 65536, 5600), FakeModule("ChannelA-DIMM1", "BANK 1", 0, 0)]
    found = read_hardware(write_tree(tmp_path, {"sys/firmware/dmi/tables/DMI": dmi_table(modules)}))
    assert found.modules == (MemoryModule("ChannelA-DIMM0", 64 * GIB, "A", 5600), MemoryModule("ChannelA-DIMM1", 0, "A", 0))


@given(st.binary(max_size=200))
def test_a_damaged_table_is_no_traceback(junk: bytes) -> None:
    table = dmi_table([FakeModule("DIMM_A1", "", 8192)])
    list(parse_memory_modules(junk))
    list(parse_memory_modules(table[: len(junk)] + junk))


def test_modules_of_the_memory_controllers_driver(tmp_path: Path) -> None:
    folder = "sys/devices/system/edac/mc/mc0/dimm0"
    files: dict[str, str | bytes] = {
        "dimm_location": "channel 1 slot 0 \n",
        "size": "16384\n",
        "dimm_label": "CPU_SrcID#0_Ha#0_Chan#1_DIMM#0\n",
    }
    found = read_hardware(write_tree(tmp_path, {f"{folder}/{name}": content for name, content in files.items()}))
    assert found.modules == (MemoryModule("CPU_SrcID#0_Ha#0_Chan#1_DIMM#0", 16 * GIB, "mc0 1"),)


def test_a_table_that_only_root_may_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> bytes:
        raise PermissionError

    monkeypatch.setattr(Path, "read_bytes", refuse)
    found = read_hardware(tmp_path)
    assert (found.modules, found.hidden) == (None, True)


@pytest.mark.parametrize(("kind", "portable"), [("3", False), ("10", True), ("31", True), ("", False), ("x", False)])
def test_a_laptop(tmp_path: Path, kind: str, portable: bool) -> None:  # noqa: FBT001 -- a row of the table
    assert read_hardware(write_tree(tmp_path, {"sys/class/dmi/id/chassis_type": f"{kind}\n"})).portable is portable


def test_a_laptop_that_stays_awake(tmp_path: Path) -> None:
    main = "[Login]\n#HandleLidSwitch=suspend\nHandleLidSwitch=suspend\nHandleLidSwitchDocked=ignore\n"
    assert not read_hardware(write_tree(tmp_path, {"etc/systemd/logind.conf": main})).stays_awake
    assert read_hardware(write_tree(tmp_path, {"usr/lib/systemd/logind.conf.d/50-a.conf": "[Login]\nHandleLidSwitch=ignore\n"})).stays_awake
    write_tree(tmp_path, {"etc/systemd/logind.conf.d/50-a.conf": "[Login]\n"})  # it replaces the one of the same name
    assert not read_hardware(tmp_path).stays_awake


def test_hibernation(tmp_path: Path) -> None:
    found = read_hardware(write_tree(tmp_path, {"proc/cmdline": "ro quiet resume=UUID=0f0f resume_offset=34816\n"}))
    assert (found.resume, found.resume_offset, found.no_hibernation) == ("UUID=0f0f", True, False)
    units = tmp_path / "etc/systemd/system"
    units.mkdir(parents=True)
    (units / "hibernate.target").symlink_to("/dev/null")
    assert read_hardware(tmp_path).no_hibernation


def test_huge_pages(tmp_path: Path) -> None:
    folder = "sys/kernel/mm/transparent_hugepage"
    files: dict[str, str | bytes] = {f"{folder}/enabled": "always [madvise] never\n", f"{folder}/defrag": "always defer [never]\n"}
    found = read_hardware(write_tree(tmp_path, files))
    assert (found.huge_pages, found.defrag) == ("madvise", "never")
