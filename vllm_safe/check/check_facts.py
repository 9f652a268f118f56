"""Facts that only `vllm-safe check` needs: what runs now, and with which arguments."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from shutil import which
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from vllm_safe.driver.driver_facts import Driver

_ANSWER_TIMEOUT = 10.0  # seconds; a server that swaps may need some
_LONGEST_ANSWER = 1 << 20


@dataclass(frozen=True)
class Served:
    """What a running server's model list says: the `models` in it, or the `problem` with asking."""

    models: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class Inspection:
    """The facts; `served` has the running models only."""

    units: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # properties as systemctl shows them
    earlyoom: tuple[str, ...] = ()  # the arguments of the running earlyoom, without its own name
    admin_earlyoom: str | None = None  # the admin's own arguments, which ours go before
    overcommit: int = 0  # vm.overcommit_memory
    compiler: bool = True  # there is one for C++
    headers: bool = True  # there is a Python.h
    hard_disks: Mapping[str, str] = field(default_factory=dict)  # by name, the I/O scheduler
    served: Mapping[str, Served] = field(default_factory=dict)
    driver: Driver | None = None  # NVIDIA's; None where no model needs a card
    cuda: tuple[int, int] | None = None  # that the engine is made for, if that is known


def read_earlyoom_arguments(pid: int) -> tuple[str, ...]:
    """What the process `pid` was started with, or () if there is none."""
    import psutil  # noqa: PLC0415 - 11 ms that only this question pays

    try:
        return tuple(psutil.Process(pid).cmdline()[1:]) if pid else ()
    except psutil.Error:
        return ()


class _NoRedirect(HTTPRedirectHandler):
    """A server that sends us elsewhere gets no key carried there."""

    def redirect_request(self, *_: object) -> None:
        """None: the answer is an error like any other."""


def ask_models(url: str, key: str) -> Served:
    """The model list at `url`, asked with the API key `key` or "". Proxies of the environment are not asked."""
    request = Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})  # noqa: S310 - http:// by config's own check
    try:
        with build_opener(ProxyHandler({}), _NoRedirect).open(request, timeout=_ANSWER_TIMEOUT) as answer:
            listed = json.loads(answer.read(_LONGEST_ANSWER))
        return Served(tuple(str(model["id"]) for model in listed["data"]))
    except HTTPError as error:
        return Served(problem=f"{url} answers {error.code}")
    except (KeyError, TypeError, ValueError, RecursionError):
        return Served(problem=f"{url} answers with something that is no model list")
    except (OSError, HTTPException) as error:
        return Served(problem=f"{url} does not answer: {getattr(error, 'reason', error)}")


def read_overcommit(root: Path = Path("/")) -> int:
    """vm.overcommit_memory: 0 heuristic, 1 always, 2 never."""
    try:
        return int((root / "proc/sys/vm/overcommit_memory").read_text())
    except (OSError, ValueError):
        return 0


def read_hard_disks(root: Path = Path("/")) -> dict[str, str]:
    """The disks that turn, by name, and the I/O scheduler of each: "mq-deadline", "bfq", "kyber", "none"."""
    found = {}
    for disk in sorted((root / "sys/block").glob("*")):
        if not (disk / "device").exists():  # a loop device, LVM, RAID: what is below it schedules
            continue
        with suppress(OSError, ValueError):
            if int((disk / "queue/rotational").read_text()):
                text = (disk / "queue/scheduler").read_text()
                found[disk.name] = text.partition("[")[2].partition("]")[0] or text.strip()
    return found


def has_compiler() -> bool:
    """Whether Triton and torch find a compiler; one for C++ brings one for C."""
    return any(map(which, ("c++", "g++", "clang++")))


def has_headers() -> bool:
    """Whether the C headers of the system's Python, which the engine's venv shares, are there."""
    return (Path(sysconfig.get_path("include", vars={"installed_base": "/usr", "base": "/usr"})) / "Python.h").exists()


def active_units(units: Mapping[str, Mapping[str, str]], names: Iterable[str]) -> tuple[str, ...]:
    """Those of the units that run."""
    return tuple(name for name in names if units.get(name, {}).get("ActiveState") == "active")
