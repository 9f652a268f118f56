"""Facts about the NVIDIA driver and its cards, from NVML and from /proc, /sys and /lib/modules below a root that tests can replace."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_safe.driver.card_facts import CardPair, NvmlCard, PciCard, parse_card, read_pci_bus
from vllm_safe.driver.card_process import PYTHON, CardHungError, ask_card_program

_SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"  # UEFI global variable: 4 bytes of flags, then 1
_PROGRAM = Path(__file__).with_name("__main__.py")
# Matches nvidia.ko, in Debian nvidia-current.ko and similar names; not nvidia-uvm.ko, which belongs to it.
_MODULE = re.compile(r"^(?:\S*/)?nvidia(?:-current|-tesla|-legacy)?(?:-[0-9]+(?:xx)?)?(?:-open)?\.ko(?:\.\w+)?:", re.MULTILINE)
_VERSION = re.compile(r"\s(\d{3,4}\.\d+(?:\.\d+)?)\s")
_MODULES = ("nvidia", "nvidia_uvm")
_TIME = 30.0  # seconds for NVML: the first call of a cold driver takes 2 s per card
_UNKNOWN = 999  # NVML_ERROR_UNKNOWN


@dataclass(frozen=True)
class Nvml:
    """The answer of NVML. `error`: the return value of nvmlInit; None if NVML is not installed."""

    error: int | None = None
    hung: bool = False  # it did not answer in time
    library: str = ""  # version of the driver to which the library belongs
    driver: str = ""  # version of the kernel module
    cuda: tuple[int, int] = (0, 0)  # newest CUDA version that the driver's libcuda.so.1 supports; (0, 0): no libcuda
    cards: tuple[NvmlCard, ...] = ()
    pairs: tuple[CardPair, ...] = ()  # of the cards that respond


@dataclass(frozen=True)
class Driver:
    """The facts about the driver."""

    system: str = ""  # ID and VERSION_ID of os-release: "debian12"
    kernel: str = ""  # release of the running kernel
    pci: tuple[PciCard, ...] = ()
    loaded: str = ""  # version of the loaded kernel module, or ""
    open_module: bool = False  # it is NVIDIA's open one
    modules: frozenset[str] = frozenset()  # of _MODULES, those that are loaded
    built: bool = False  # a module exists for the running kernel
    secure_boot: bool = False  # the kernel loads only signed modules
    nvml: Nvml = Nvml()

    @property
    def answers(self) -> bool:
        """Whether a card can be used now."""
        return self.nvml.cuda > (0, 0) and any(card.capability > (0, 0) for card in self.nvml.cards)

    @property
    def installed(self) -> bool:
        """Whether the driver's programs and libraries are installed, working or not."""
        return self.nvml.error is not None or self.nvml.hung


def read_driver(root: Path = Path("/")) -> Driver:
    """Read the facts. NVML loads the kernel module if it is not loaded yet, as nvidia-smi does."""
    asked = ask_nvml(root=root)  # this comes first, since a module that it loads is seen below
    kernel = _text(root / "proc/sys/kernel/osrelease").strip()
    module = _text(root / "proc/driver/nvidia/version")
    version = _VERSION.search(module)
    return Driver(
        system=_system(root),
        kernel=kernel,
        pci=read_pci_bus(root),
        loaded=version[1] if version else "",
        open_module="Open Kernel Module" in module,
        modules=frozenset(name for name in _MODULES if (root / "sys/module" / name).exists()),
        built=bool(_MODULE.search(_text(root / "lib/modules" / kernel / "modules.dep"))) if kernel else False,
        secure_boot=_bytes(root / _SECURE_BOOT)[4:5] == b"\x01",
        nvml=asked,
    )


def ask_nvml(command: tuple[str | Path, ...] = (*PYTHON, _PROGRAM), seconds: float = _TIME, root: Path = Path("/")) -> Nvml:
    """Query NVML in a separate process."""
    try:
        answer = ask_card_program(command, seconds)
    except CardHungError:
        return Nvml(hung=True)
    if answer is not None:
        with suppress(ValueError, KeyError, TypeError, AttributeError):
            return _nvml(answer, root)
    return Nvml(error=_UNKNOWN)  # the library itself crashed


def _nvml(answer: dict[str, Any], root: Path) -> Nvml:
    if answer["error"] is None:
        return Nvml()
    cuda = int(answer.get("cuda", 0))
    return Nvml(
        error=int(answer["error"]),
        library=str(answer.get("library", "")),
        driver=str(answer.get("driver", "")),
        cuda=(cuda // 1000, cuda % 1000 // 10),
        cards=tuple(parse_card(card, root) for card in answer.get("cards", ())),
        pairs=tuple(CardPair(**pair) for pair in answer.get("pairs", ())),
    )


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
