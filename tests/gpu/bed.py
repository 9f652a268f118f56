"""`make test-gpu`: the scenarios in a throwaway Debian with this machine's GPUs. A machine without a GPU is reported, and not a failure."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.beds import cache, engine
from tests.beds.nspawn import Bind, Nspawn
from tests.gpu.box import ENGINE

REPOSITORY = Path(__file__).parents[2]
CARDS = Path("/proc/driver/nvidia/gpus")
DEB = REPOSITORY / "dist/vllm-safe.deb"
LOCK = REPOSITORY / "vllm_safe/engine/locks/vllm.txt"
COMPILERS = ["g++", "python3-dev"]


def main() -> int:
    """Run the scenarios in a bed. Return their exit status."""
    if not CARDS.is_dir() or not any(CARDS.iterdir()):
        print(f"skipped: the NVIDIA driver shows no card on this machine ({CARDS})")
        return 0
    layer = cache.cached("cuda-engines", engine.digest([LOCK]), _install)
    with Nspawn(binds=_driver(), layers=[layer]) as bed:
        bed.run(["ldconfig"])
        bed.run(["apt-get", "install", "--yes", "--quiet=2", *COMPILERS], timeout=600)
        bed.install(DEB)
        for file in (*Path(__file__).parent.glob("*.py"), REPOSITORY / "tests/beds/__init__.py", REPOSITORY / "tests/beds/tiny_model.py"):
            target = Path("/root", file.relative_to(REPOSITORY))
            bed.run(["mkdir", "-p", str(target.parent)])
            bed.put(file, str(target))
        return subprocess.run(bed.argv(["python3", "-m", "tests.gpu", *sys.argv[1:]]), check=False).returncode


def _driver() -> list[Bind]:
    """Return the device nodes of the GPUs, and the programs and libraries of their driver."""
    nodes = [node for node in Path("/dev").glob("nvidia*") if not node.is_dir()]
    known = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    libraries = {Path(path) for path in re.findall(r"=> (\S*/lib(?:cuda|nvidia)[\w.+-]*)", known)}
    programs = [path for path in (Path("/usr/bin/nvidia-smi"),) if path.exists()]
    return [Bind(path.resolve(), str(path), writable=path in nodes) for path in (*nodes, *sorted(libraries), *programs)]


def _install(folder: Path) -> None:
    """Install the engine for GPUs with vllm-safe's own installer: 4 GB from the network, once."""
    with Nspawn(binds=_driver()) as bed:
        bed.run(["ldconfig"])
        bed.install(DEB)
        bed.run(["vllm-safe", "install"], timeout=3600)
        target = folder / Path(ENGINE).parent.relative_to("/")
        target.parent.mkdir(parents=True)
        subprocess.run(["cp", "--archive", bed.written / Path(ENGINE).parent.relative_to("/"), target], check=True)


if __name__ == "__main__":
    sys.exit(main())
