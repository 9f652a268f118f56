"""The engine of `engine.layer()`, quick to start: 18 seconds of processor time in place of 48, for the tests that start it many times.

As it is installed, each of its three processes imports all of vLLM, and at the first start a fourth, to see what the class of the model is.
`make demo` and tests/bench have it like that.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.beds import cache, engine
from tests.beds.nspawn import Nspawn

KEPT = "/var/cache/vllm-safe"
# The command sets it where nothing is set, and the CPU build always. Without these lines vLLM forks, or does what a model's `env` says.
SPAWNS = 'os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"'
PATCHED = ("vllm/platforms/cpu.py", "vllm/entrypoints/serve/utils/api_utils.py")
# A fifth of an import is collecting garbage, of which there is none.
SETTING = "import gc; gc.set_threshold(200_000, 50, 50)"
LOOK = "from vllm.model_executor.models.registry import ModelRegistry; ModelRegistry.models['Qwen2ForCausalLM'].inspect_model_cls()"
QUICKEN = f"""
cd {engine.ENGINES}/current/lib/python3.11/site-packages
for file in {" ".join(PATCHED)}; do
    grep -qF '{SPAWNS}' $file
    sed -i 's/{SPAWNS.replace("[", "[[]")}/pass/' $file
    runuser -u vllm -- ../../../bin/python -m compileall -q $file
done
echo '{SETTING}' > quick.pth
mkdir -p {KEPT}
VLLM_CACHE_ROOT={KEPT}/vllm ../../../bin/python -c "{LOOK}"
chown -R vllm:vllm {KEPT} quick.pth
[ -e {KEPT}/vllm/modelinfos/*Qwen2ForCausalLM.json ]
"""


def layers(deb: Path) -> tuple[Path, Path]:
    """Return the layers for a bed: `Nspawn(layers=layers(deb))`. The package `deb` makes them, once."""
    below = engine.layer(deb)
    key = engine.digest((*engine.INSTALLER, Path(__file__)))
    return cache.cached("quick-engines", key, lambda folder: _make(deb, below, folder)), below


def _make(deb: Path, below: Path, folder: Path) -> None:
    with Nspawn(layers=[below], network=False) as bed:
        bed.install(deb)
        bed.run(["sh", "-ec", QUICKEN], timeout=300)
        for made in (engine.ENGINES, KEPT):
            target = folder / made[1:]
            target.parent.mkdir(parents=True)
            subprocess.run(["cp", "--archive", "--no-preserve=xattr", bed.written / made[1:], target], check=True)
