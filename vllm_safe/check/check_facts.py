"""Facts that only `vllm-safe check` needs: running units and servers, and the arguments of earlyoom."""

from __future__ import annotations

import json
import os
import sysconfig
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from shutil import which
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from vllm_safe.check.kernel_log_findings import KernelLog
from vllm_safe.common.key_file import Key
from vllm_safe.contract.gateway_file import GatewayFile
from vllm_safe.driver.driver_facts import Driver
from vllm_safe.host.disk_facts import Disk
from vllm_safe.host.disk_pace import DiskPace, measure_pace
from vllm_safe.host.rig_facts import HardwareFacts
from vllm_safe.models.model_files import OpenFile, open_largest_file
from vllm_safe.power.power_facts import PowerReading
from vllm_safe.record.card_faults import GREPS, find_faults
from vllm_safe.record.card_usage import read_pci_cards
from vllm_safe.record.kill_evidence import read_journal

_ANSWER_TIMEOUT = 10.0  # seconds; a server that swaps is slow
_LONGEST_ANSWER = 1 << 20
_FIRST_MESSAGE = "Linux version "  # of each boot: init/version.c


@dataclass(frozen=True)
class Served:
    """The model list of a running server: its `models`, or the `problem` with requesting it."""

    models: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class Inspection:
    """The facts. `served` has only the running models."""

    units: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # properties as in `systemctl show`
    earlyoom: tuple[str, ...] = ()  # the arguments of the running earlyoom, without its own name
    admin_earlyoom: str | None = None  # the administrator's arguments, which those of config.yaml override
    overcommit: int = 0  # vm.overcommit_memory
    compiler: bool = True  # a C++ compiler is installed
    headers: bool = True  # Python.h is installed
    disks: Mapping[str, Disk] = field(default_factory=dict)  # by name
    swap_disks: tuple[Disk, ...] = ()  # those that the kernel swaps to, or will
    served: Mapping[str, Served] = field(default_factory=dict)
    driver: Driver | None = None  # NVIDIA's; None where no model needs a card
    power: PowerReading | None = None  # None where no power limit is configured
    cuda: tuple[int, int] | None = None  # the CUDA version that the engine was built for, if it is known
    rig: HardwareFacts | None = None  # None if it was not read
    log: KernelLog | None = None  # None if it was not read
    gateway: GatewayFile | None = None  # None if no model is on demand
    gateway_key: Key | None = None  # None if the gateway requires no key
    aiohttp: bool = True  # whether Debian's python3-aiohttp is installed, which the gateway needs


def has_aiohttp(root: Path = Path("/")) -> bool:
    """Return whether Debian's python3-aiohttp is installed."""
    return (root / "usr/lib/python3/dist-packages/aiohttp").is_dir()


def read_earlyoom_arguments(pid: int) -> tuple[str, ...]:
    """Return the arguments of the process `pid`, without its name, or () if there is no such process."""
    import psutil  # noqa: PLC0415 - takes 11 ms, and nothing else here needs it

    try:
        return tuple(psutil.Process(pid).cmdline()[1:]) if pid else ()
    except psutil.Error:
        return ()


class _NoRedirect(HTTPRedirectHandler):
    """A handler that follows no redirect, so that the API key is not sent to another server."""

    def redirect_request(self, *_: object) -> None:
        """Return None, so that a redirect is an error like any other status."""


def ask_models(url: str, key: str) -> Served:
    """Request the model list at `url`, with the API key `key` unless it is "". Proxies in the environment are not used."""
    request = Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})  # noqa: S310 - the URL begins with http://
    try:
        with build_opener(ProxyHandler({}), _NoRedirect).open(request, timeout=_ANSWER_TIMEOUT) as answer:
            listed = json.loads(answer.read(_LONGEST_ANSWER))
        return Served(tuple(str(model["id"]) for model in listed["data"]))
    except HTTPError as error:
        return Served(problem=f"{url} returned HTTP {error.code}")
    except (KeyError, TypeError, ValueError, RecursionError):
        return Served(problem=f"{url} did not return a model list")
    except (OSError, HTTPException) as error:
        return Served(problem=f"{url} did not respond: {getattr(error, 'reason', error)}")


def read_overcommit(root: Path = Path("/")) -> int:
    """Read vm.overcommit_memory: 0 heuristic, 1 always, 2 never."""
    try:
        return int((root / "proc/sys/vm/overcommit_memory").read_text())
    except (OSError, ValueError):
        return 0


def read_kernel_log(root: Path = Path("/")) -> KernelLog:
    """Read what the kernel logged about the cards in this boot.

    Its first message is looked for too: without it, the journal is not the whole one, or this user sees nothing of the kernel in it.
    """
    cards = read_pci_cards("" if root == Path("/") else str(root))
    (driver, whole), (links, too) = (read_journal(0.0, grep) for grep in (f"{GREPS[0]}|{_FIRST_MESSAGE}", GREPS[1]))
    seen = any(_FIRST_MESSAGE in line.text for line in driver)
    events = find_faults([*driver, *links], 0.0, (), cards)
    return KernelLog(tuple(events), tuple(cards), time.time(), whole=whole and too and seen)


@dataclass(frozen=True)
class MeasuredDisk:
    """How fast the file of a model, or the swapfile, was read. total: the bytes of all files that a load reads; 0 if not known."""

    file: str
    pace: DiskPace
    total: int = 0


def measure_disk(model: str, swapfile: Path) -> MeasuredDisk | None:
    """Read the largest file of a model for some seconds, or else the swapfile; None if neither can be read past the page cache."""
    found = open_largest_file(model)
    with suppress(OSError):
        flags = os.O_RDONLY | os.O_DIRECT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        found = found or OpenFile(os.open(swapfile, flags), str(swapfile), 0)
    if found is None:
        return None
    try:
        return MeasuredDisk(found.name, measure_pace(found.descriptor), found.total)
    except OSError:
        return None
    finally:
        os.close(found.descriptor)


def has_compiler() -> bool:
    """Whether Triton and torch find a compiler. Every C++ compiler comes with one for C."""
    return any(map(which, ("c++", "g++", "clang++")))


def has_headers() -> bool:
    """Whether the C headers of the system's Python are installed. The engine's venv uses that Python."""
    return (Path(sysconfig.get_path("include", vars={"installed_base": "/usr", "base": "/usr"})) / "Python.h").exists()


def active_units(units: Mapping[str, Mapping[str, str]], names: Iterable[str]) -> tuple[str, ...]:
    """Return the units of `names` that are active."""
    return tuple(name for name in names if units.get(name, {}).get("ActiveState") == "active")
