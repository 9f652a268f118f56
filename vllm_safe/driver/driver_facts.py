"""Facts about NVIDIA's driver and its cards, read from /proc, /sys and /lib/modules below a root that tests may replace, and from NVML."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_safe.driver import nvml

_NVIDIA, _DISPLAY = "0x10de", "0x03"  # PCI's vendor, and its class of display controllers
_SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"  # UEFI: global variable; 4 bytes of flags, 1
# nvidia.ko, in Debian nvidia-current.ko and the like; not nvidia-uvm.ko, which comes with it.
_MODULE = re.compile(r"^(?:\S*/)?nvidia(?:-current|-tesla|-legacy)?(?:-[0-9]+(?:xx)?)?(?:-open)?\.ko(?:\.\w+)?:", re.MULTILINE)
_VERSION = re.compile(r"\s(\d{3,4}\.\d+(?:\.\d+)?)\s")
_TIME = 30.0  # seconds for NVML: the first call of a cold driver takes 2 s a card
_UNKNOWN = 999  # NVML_ERROR_UNKNOWN
_LONGEST = 1 << 16  # bytes of its answer


@dataclass(frozen=True)
class PciCard:
    """An NVIDIA display controller on the PCI bus. `driver`: the kernel's driver that it is bound to, or ""."""

    address: str
    driver: str = ""


@dataclass(frozen=True)
class NvmlCard:
    """A card that the driver has. `capability`: its CUDA compute capability; (0, 0) if it does not answer."""

    name: str
    capability: tuple[int, int]


@dataclass(frozen=True)
class Nvml:
    """What NVML says. `error`: what nvmlInit returned; None where there is no NVML."""

    error: int | None = None
    hung: bool = False  # it did not answer in time
    library: str = ""  # the version of the driver that the library belongs to
    driver: str = ""  # the version of the kernel's side
    cuda: tuple[int, int] = (0, 0)  # the newest CUDA that the driver's libcuda.so.1 knows; (0, 0): there is none
    cards: tuple[NvmlCard, ...] = ()


@dataclass(frozen=True)
class Driver:
    """All that is known of the driver."""

    system: str = ""  # ID and VERSION_ID of os-release: "debian12"
    kernel: str = ""  # release of the running one
    pci: tuple[PciCard, ...] = ()
    loaded: str = ""  # the version of the kernel module that is loaded
    built: bool = False  # there is a module for the running kernel
    secure_boot: bool = False  # the kernel loads signed modules only
    nvml: Nvml = Nvml()

    @property
    def answers(self) -> bool:
        """A card can be used now."""
        return self.nvml.cuda > (0, 0) and any(card.capability > (0, 0) for card in self.nvml.cards)

    @property
    def installed(self) -> bool:
        """The driver's programs and libraries are there, whether it works or not."""
        return self.nvml.error is not None or self.nvml.hung


def read_driver(root: Path = Path("/")) -> Driver:
    """The facts. Asking NVML loads the driver's module where nothing has yet, as nvidia-smi does."""
    asked = ask_nvml()  # first: what it loads shows below
    kernel = _text(root / "proc/sys/kernel/osrelease").strip()
    version = _VERSION.search(_text(root / "proc/driver/nvidia/version"))
    return Driver(
        system=_system(root),
        kernel=kernel,
        pci=_pci_cards(root),
        loaded=version[1] if version else "",
        built=bool(_MODULE.search(_text(root / "lib/modules" / kernel / "modules.dep"))) if kernel else False,
        secure_boot=_bytes(root / _SECURE_BOOT)[4:5] == b"\x01",
        nvml=asked,
    )


def ask_nvml(command: tuple[str, ...] = (sys.executable, "-I", "-B", nvml.__file__), seconds: float = _TIME) -> Nvml:
    """Ask in a process of its own. One that hangs in the kernel cannot be killed, and is not waited for."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        said, _ = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        if child.stdout:
            child.stdout.close()
        with suppress(subprocess.TimeoutExpired):
            child.wait(1.0)
        return Nvml(hung=True)
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        return _nvml(json.loads(said[:_LONGEST]))
    return Nvml(error=_UNKNOWN)  # the library itself crashed


def _nvml(answer: dict[str, Any]) -> Nvml:
    if answer["error"] is None:
        return Nvml()
    cuda = int(answer.get("cuda", 0))
    return Nvml(
        error=int(answer["error"]),
        library=str(answer.get("library", "")),
        driver=str(answer.get("driver", "")),
        cuda=(cuda // 1000, cuda % 1000 // 10),
        cards=tuple(NvmlCard(str(card["name"]), (card["capability"][0], card["capability"][1])) for card in answer.get("cards", ())),
    )


def _pci_cards(root: Path) -> tuple[PciCard, ...]:
    """The NVIDIA cards, whatever drives them."""
    cards = []
    for device in sorted((root / "sys/bus/pci/devices").glob("*")):
        if _text(device / "vendor").strip() == _NVIDIA and _text(device / "class").startswith(_DISPLAY):
            driver = ""
            with suppress(OSError):
                driver = (device / "driver").readlink().name
            cards.append(PciCard(device.name, driver))
    return tuple(cards)


def _system(root: Path) -> str:
    release: dict[str, str] = dict(re.findall(r'^(ID|VERSION_ID)="?([\w.]*)', _text(root / "etc/os-release"), re.MULTILINE))
    return release.get("ID", "") + release.get("VERSION_ID", "").replace(".", "")


def _text(path: Path) -> str:
    return _bytes(path).decode(errors="replace")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
