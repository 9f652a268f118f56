"""Facts about the hardware around the cards: processor, memory modules, huge pages, hibernation, and whether it is a laptop."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vllm_safe.common.kernfs import parse_number, read_kernel_file
from vllm_safe.common.sizes import KIB, MIB

# System Management BIOS Reference Specification 3.7: section 6.1.2 (a structure), 7.18 (memory device), 7.4 (chassis).
_HEADER, _MEMORY_DEVICE = struct.Struct("<BBH"), 17
_SIZE, _LOCATOR, _BANK, _CONFIGURED_SPEED, _EXTENDED_SIZE = 0x0C, 0x10, 0x11, 0x20, 0x1C
_PORTABLE = frozenset(
    {8, 9, 10, 11, 14, 30, 31, 32}
)  # portable, laptop, notebook, hand-held, sub notebook, tablet, convertible, detachable
# What boards call a slot: "ChannelA-DIMM0", "P0 CHANNEL B", "DIMM_A1", "Controller1-ChannelA-DIMM0".
_CHANNEL = re.compile(r"(?:^|[^a-z])channel[ _-]?([A-P0-9])", re.IGNORECASE)
_DIMM = re.compile(r"DIMM[ _-]?([A-P])[ _-]?\d", re.IGNORECASE)
_CONTROLLER = re.compile(r"(?:^|[^a-z0-9])((?:controller|cpu|node|p)[ _]?\d+)", re.IGNORECASE)
_CORE = re.compile(r"^(physical id|core id)\s*:\s*(\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class MemoryModule:
    """A slot for memory. size: bytes, 0 if it is empty. channel: its name, or "" if the firmware does not tell. speed: MT/s, or 0."""

    slot: str
    size: int
    channel: str = ""
    speed: int = 0


@dataclass(frozen=True)
class HardwareFacts:
    """The facts. modules: None where they cannot be read; `hidden`: because only root can. cores: 0 where they are not told."""

    threads: int = 0
    cores: int = 0
    modules: tuple[MemoryModule, ...] | None = None
    hidden: bool = False
    huge_pages: str = ""  # when the kernel uses transparent huge pages: "always", "madvise", "never"
    defrag: str = ""  # how hard it tries to make room for one
    portable: bool = False
    resume: str = ""  # the device from which the kernel resumes after hibernation, as its command line has it
    resume_offset: bool = False  # it resumes from a file on that device
    stays_awake: bool = False  # closing the lid does not suspend it
    no_hibernation: bool = False  # the administrator has masked it


def read_hardware(root: Path = Path("/")) -> HardwareFacts:
    """Read the facts."""
    processors = [dict(_CORE.findall(text)) for text in _text(root / "proc/cpuinfo").split("\n\n") if text.startswith("processor")]
    cores = {(each["physical id"], each["core id"]) for each in processors if len(each) == 2}
    words = dict(word.partition("=")[::2] for word in _text(root / "proc/cmdline").split())
    folder = root / "sys/kernel/mm/transparent_hugepage"
    modules, hidden = _modules(root)
    return HardwareFacts(
        threads=len(processors),
        cores=len(cores),
        modules=modules,
        hidden=hidden,
        huge_pages=_chosen(folder / "enabled"),
        defrag=_chosen(folder / "defrag"),
        portable=parse_number(_text(root / "sys/class/dmi/id/chassis_type")) in _PORTABLE,
        resume=words.get("resume", ""),
        resume_offset="resume_offset" in words,
        stays_awake=_lid(root) == "ignore",
        no_hibernation=os.path.realpath(root / "etc/systemd/system/hibernate.target") == os.devnull,
    )


def _lid(root: Path) -> str:
    """Return HandleLidSwitch= of logind.conf(5), "" by default: the file, then its drop-ins by name."""
    folders = [root / folder / "systemd/logind.conf.d" for folder in ("usr/lib", "run", "etc")]
    dropins = {file.name: file for folder in folders for file in sorted(folder.glob("*.conf"))}
    files = [root / "etc/systemd/logind.conf", *(dropins[name] for name in sorted(dropins))]
    found = [match[1] for file in files for match in re.finditer(r"^HandleLidSwitch=(\S*)", _text(file), re.MULTILINE)]
    return found[-1] if found else ""


def _text(path: Path) -> str:
    return read_kernel_file(str(path))


def _chosen(path: Path) -> str:
    """Return the word in brackets: "always [madvise] never"."""
    return _text(path).partition("[")[2].partition("]")[0]


def _modules(root: Path) -> tuple[tuple[MemoryModule, ...] | None, bool]:
    """Return the slots for memory: from the firmware's table, which only root may read, or from the memory controller's driver (EDAC)."""
    table, hidden = b"", False
    try:
        table = (root / "sys/firmware/dmi/tables/DMI").read_bytes()
    except PermissionError:
        hidden = True
    except OSError:
        pass
    found = tuple(parse_memory_modules(table)) or tuple(_edac_modules(root))
    return (found, False) if found else (None, hidden)


def parse_memory_modules(table: bytes) -> Iterator[MemoryModule]:
    """Yield the slots for memory in the table of the firmware (SMBIOS), as far as it is whole."""
    position = 0
    while position + _HEADER.size <= len(table):
        kind, length, _ = _HEADER.unpack_from(table, position)
        body, end = table[position : position + length], table.find(b"\0\0", position + length)
        if length < _HEADER.size or end < 0:
            return
        if kind == _MEMORY_DEVICE and length > _BANK:
            strings = table[position + length : end].split(b"\0")
            slot, bank = (_string(strings, body[offset]) for offset in (_LOCATOR, _BANK))
            speed = _word(body, _CONFIGURED_SPEED)
            yield MemoryModule(slot, _module_size(body), _channel(slot, bank), speed if speed != 0xFFFF else 0)
        position = end + 2


def _string(strings: list[bytes], number: int) -> str:
    return strings[number - 1].decode(errors="replace").strip() if 0 < number <= len(strings) else ""


def _word(body: bytes, offset: int) -> int:
    return int.from_bytes(body[offset : offset + 2], "little") if offset + 2 <= len(body) else 0


def _module_size(body: bytes) -> int:
    size = _word(body, _SIZE)
    if size == 0x7FFF:
        return int.from_bytes(body[_EXTENDED_SIZE : _EXTENDED_SIZE + 4], "little") * MIB
    if size == 0xFFFF:  # not known
        return 0
    return (size & 0x7FFF) * (KIB if size & 0x8000 else MIB)


def _channel(slot: str, bank: str) -> str:
    names = f"{bank} {slot}"
    channel, controller = _CHANNEL.search(names) or _DIMM.search(slot), _CONTROLLER.search(names)
    return f"{controller[1] if controller else ''} {channel[1]}".strip().upper() if channel else ""


def _edac_modules(root: Path) -> Iterator[MemoryModule]:
    """Yield the modules as drivers/edac/edac_mc_sysfs.c shows them: "channel 0 slot 0", and the size in MiB."""
    for folder in sorted((root / "sys/devices/system/edac/mc").glob("mc*/dimm*")):
        place = re.search(r"channel (\d+)", _text(folder / "dimm_location"))
        size = parse_number(_text(folder / "size")) or 0
        yield MemoryModule(_text(folder / "dimm_label").strip(), size * MIB, f"{folder.parent.name} {place[1]}" if place else "")
