"""Machines with cards, as trees of /proc and /sys and as the answers of the fake NVML."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GIB = 1 << 30


@dataclass(frozen=True)
class FakeCard:
    """A card. facts: what the fake NVML says of it, by the keys of tests/fakes/nvml.c; None: it does not respond."""

    address: str
    name: str = ""
    facts: Mapping[str, object] | None = None
    lanes: int = 16
    card_lanes: int = 16
    slot_lanes: int = 16
    bound: str = "nvidia"
    iommu: str = "identity"


@dataclass(frozen=True)
class FakeModule:
    """A slot for memory, as firmware describes it. size: MiB."""

    slot: str
    bank: str
    size: int
    speed: int = 2400


@dataclass(frozen=True)
class FakeRig:
    """A machine. cores: of each, how many CPUs. files: more of them, by path. pairs: lines of the fake NVML. disks: name -> rotational.

    processes: pid -> (name, cgroup). journal: lines of the kernel, with the seconds that have passed since. driver: "" for none.
    """

    config: str
    cards: Sequence[FakeCard] = ()
    pairs: Sequence[str] = ()
    driver: str = "580.95.05"
    cuda: int = 13000
    open_module: bool = True
    memory: int = 64 * GIB
    cores: int = 8
    threads: int = 2
    modules: Sequence[FakeModule] = ()
    disks: Mapping[str, bool] = field(default_factory=lambda: {"nvme0n1": False})
    swapfile: int = 0  # bytes
    chassis: int = 3  # a desktop
    huge_pages: str = "always [madvise] never"
    defrag: str = "always defer defer+madvise [madvise] never"
    command_line: str = "BOOT_IMAGE=/boot/vmlinuz root=/dev/sda1 ro quiet"
    processes: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    journal: Sequence[tuple[float, str]] = ()
    model: Mapping[str, Any] = field(default_factory=dict)  # its config.json


def build_rig(rig: FakeRig, folder: Path) -> tuple[Path, Path]:
    """Write the machine. Return its root, and the file for FAKE_NVML."""
    root, answers = folder / "root", folder / "nvml.txt"
    answers.write_text(_answers(rig))
    for path, content in _files(rig).items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    for number, card in enumerate(rig.cards):
        _plug(root, number, card)
    first = next(iter(rig.disks))
    (root / "sys/dev/block").mkdir(parents=True)
    (root / "sys/dev/block/8:1").symlink_to(f"../../block/{first}/{first}1")
    return root, answers


def _answers(rig: FakeRig) -> str:
    lines = ["error 0" if rig.driver else "error 9", f"driver {rig.driver}", f"cuda {rig.cuda}"]
    for card in rig.cards:
        if card.bound == "nvidia":
            lines.append(f"{'lost' if card.facts is None else 'card'} {card.address} {card.name}")
            lines += [f"  {key.split('@')[0]} {value}" for key, value in (card.facts or {}).items()]
    return "\n".join([*lines, *rig.pairs, ""])


def _files(rig: FakeRig) -> dict[str, str | bytes]:
    cpus = [
        f"processor\t: {number}\nphysical id\t: 0\ncore id\t\t: {number % rig.cores}\n" for number in range(rig.cores * rig.threads)
    ]  # the hyper-threads come after all cores, as on most machines
    first = next(iter(rig.disks))
    swap = f"/swapfile file {rig.swapfile // 1024} 0 -2\n" if rig.swapfile else ""
    files: dict[str, str | bytes] = {
        "proc/cpuinfo": "\n".join(cpus),
        "proc/cmdline": f"{rig.command_line}\n",
        "proc/meminfo": f"MemTotal: {rig.memory // 1024} kB\nMemAvailable: {rig.memory * 9 // 10240} kB\n",
        "proc/swaps": f"Filename Type Size Used Priority\n{swap}",
        "proc/pressure/memory": "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
        "proc/self/mountinfo": f"1 1 8:1 / / rw - ext4 /dev/{first}1 rw\n"
        "2 1 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,memory_recursiveprot\n",
        "proc/sys/kernel/osrelease": "6.1.0-41-amd64\n",
        "proc/sys/vm/overcommit_memory": "0\n",
        "sys/fs/cgroup/cgroup.controllers": "cpu io memory pids\n",
        "sys/class/dmi/id/chassis_type": f"{rig.chassis}\n",
        "sys/kernel/mm/transparent_hugepage/enabled": f"{rig.huge_pages}\n",
        "sys/kernel/mm/transparent_hugepage/defrag": f"{rig.defrag}\n",
        "etc/os-release": 'ID=debian\nVERSION_ID="12"\n',
    }
    if rig.modules:
        files["sys/firmware/dmi/tables/DMI"] = dmi_table(rig.modules)
    if rig.driver:
        kind = "Open Kernel Module for x86_64" if rig.open_module else "x86_64 Kernel Module"
        files["proc/driver/nvidia/version"] = f"NVRM version: NVIDIA UNIX {kind}  {rig.driver}  Release Build\n"
        files |= {f"sys/module/{name}/refcnt": "1\n" for name in ("nvidia", "nvidia_uvm")}
    for disk, rotational in rig.disks.items():
        files |= {
            f"sys/block/{disk}/queue/rotational": f"{rotational:d}\n",
            f"sys/block/{disk}/queue/scheduler": "[mq-deadline] none\n" if rotational else "[none] mq-deadline\n",
            f"sys/block/{disk}/device/model": "a disk\n",
            f"sys/block/{disk}/{disk}1/partition": "1\n",
        }
    for pid, (name, cgroup) in rig.processes.items():
        files |= {f"proc/{pid}/comm": f"{name}\n", f"proc/{pid}/cgroup": f"0::{cgroup}\n"}
    return files


def _plug(root: Path, number: int, card: FakeCard) -> None:
    """Put a card into a slot of its own: a bridge of the processor, and the card behind it."""
    slot = root / f"sys/devices/pci0000:00/0000:00:{number + 1:02x}.0"
    device = slot / card.address
    files = {
        slot / "max_link_width": card.slot_lanes,
        device / "vendor": "0x10de",
        device / "class": "0x030000",
        device / "current_link_width": card.lanes,
        device / "max_link_width": card.card_lanes,
        device / "iommu_group/type": card.iommu,
    }
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    if card.bound:
        (device / "driver").symlink_to(f"../../../../bus/pci/drivers/{card.bound}")
    devices = root / "sys/bus/pci/devices"
    devices.mkdir(parents=True, exist_ok=True)
    (devices / card.address).symlink_to(f"../../../devices/pci0000:00/{slot.name}/{card.address}")
    if card.bound == "nvidia":
        info = root / f"proc/driver/nvidia/gpus/{card.address}/information"
        info.parent.mkdir(parents=True)
        info.write_text(f"Model: \t\t {card.name}\n")


def dmi_table(modules: Sequence[FakeModule]) -> bytes:
    """Return the firmware's table: a processor, which is not read, the modules, and the end."""
    table = struct.pack("<BBH", 4, 4, 0) + b"\0\0"
    for number, module in enumerate(modules):
        large = module.size >= 0x7FFF
        body = struct.pack("<HHHHH", 0, 0, 64, 64, 0x7FFF if large else module.size) + bytes([9, 0, 1, 2 if module.bank else 0, 26])
        body = struct.pack("<BBH", 17, 0x28, number + 1) + body
        body += bytes(0x1C - len(body)) + struct.pack("<I", module.size if large else 0) + struct.pack("<H", module.speed)
        strings = "".join(f"{text}\0" for text in (module.slot, module.bank) if text)
        table += body + bytes(0x28 - len(body)) + strings.encode() + b"\0"
    return table + struct.pack("<BBH", 127, 4, 0x7F) + b"\0\0"
