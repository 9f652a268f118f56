"""The watch of the swap areas on the disk of a checkpoint."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vllm_safe.engine.as_engine.vllm_safe_loader.swap_watch import SwapWatch


class Machine:
    """A /proc with a swap area, and a /sys/dev/block in which the disk of this folder is sda2."""

    def __init__(self, folder: Path) -> None:
        self.model = folder / "model.safetensors"
        self.model.touch()
        self.devices = folder / "devices"
        self.devices.mkdir()
        self._add(self.model.stat().st_dev, folder / "sda", "sda2")
        self.folder = folder
        self.swaps("")
        self.count(0)

    def _add(self, device: int, disk: Path, partition: str) -> None:
        (disk / partition).mkdir(parents=True)
        (disk / partition / "partition").touch()
        (self.devices / f"{os.major(device)}:{os.minor(device)}").symlink_to(disk / partition)

    def swaps(self, line: str) -> None:
        (self.folder / "swaps").write_text(f"Filename\tType\tSize\tUsed\tPriority\n{line}")

    def count(self, pages: int) -> None:
        (self.folder / "vmstat").write_text(f"pgpgin 5\npswpin {pages}\npswpout 7\n")

    def watch(self) -> SwapWatch:
        return SwapWatch(str(self.model), self.folder, self.devices)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_pages_that_are_swapped_in_count_for_a_second(machine: Machine) -> None:
    area = machine.folder / "swap file"
    area.touch()
    machine.swaps(f"{str(area).replace(' ', chr(92) + '040')} file 1024 0 -2\n")
    machine.count(1000)
    watch = machine.watch()
    assert not watch.swaps_in(100.0)  # what was before does not count
    machine.count(1009)
    assert not watch.swaps_in(101.0)
    machine.count(1050)
    assert not watch.swaps_in(101.5)  # not looked at yet
    assert watch.swaps_in(102.0)
    assert watch.swaps_in(102.9)
    assert not watch.swaps_in(103.0)


@pytest.mark.parametrize("line", ["", "/nowhere/swap file 1024 0 -2\n", "/dev/null partition 1024 0 -2\n"])
def test_swap_on_another_disk_or_on_none_is_nothing_to_it(machine: Machine, line: str) -> None:
    machine.swaps(line)
    watch = machine.watch()
    assert not watch.swaps_in(100.0)
    machine.count(5000)
    assert not watch.swaps_in(101.0)


def test_another_partition_of_the_same_disk_counts(machine: Machine) -> None:
    null = Path("/dev/null").stat().st_rdev
    machine._add(null, machine.folder / "sda", "sda3")
    machine.swaps("/dev/null partition 1024 0 -2\n")
    watch = machine.watch()
    watch.swaps_in(100.0)
    machine.count(5000)
    assert watch.swaps_in(101.0)


def test_without_proc_nothing_is_known(machine: Machine) -> None:
    (machine.folder / "swaps").unlink()
    assert not machine.watch().swaps_in(100.0)
