"""`python3 tests/lowest_versions.py`: what pip is to install to have the lowest versions that pyproject.toml allows. For the Makefile."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def lowest_versions(pyproject: Path) -> list[str]:
    """Return each dependency with "==" its lower bound, and that of the gateway; aiohttp alone has dependencies of its own on Linux."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["gateway"]]
    return [f"{name}=={version}" for name, _, version in (dependency.partition(">=") for dependency in wanted)]


if __name__ == "__main__":
    sys.stdout.write("\n".join(lowest_versions(Path(__file__).parents[1] / "pyproject.toml")) + "\n")
