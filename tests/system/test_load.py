"""The weights as our plugin of vLLM reads them: the real vLLM on the CPU, with one, two and eight workers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.beds import engine, loaded_weights, tiny_model
from tests.beds.nspawn import Nspawn

pytestmark = [pytest.mark.nspawn, pytest.mark.engine]

PLUGINS = "/usr/lib/vllm-safe/engine-plugins"
BROKEN = "/srv/models/broken"
SMALL = "/opt/small"  # the plugin with a ring of 1 MiB, a quarter of the file
COMPARED, COMPARER = "/srv/compared", "/root/loaded_weights.py"
MODEL = """\
  {name}:
    model: {model}
    port: {port}
    args: {{enforce-eager: true{args}}}
    env: {{VLLM_CPU_KVCACHE_SPACE: "1", VLLM_CPU_OMP_THREADS_BIND: nobind, TORCHDYNAMO_DISABLE: "1"{env}}}
    load: {load}
"""
TWO, SMALL_RING = ", tensor-parallel-size: 2", f", PYTHONPATH: {SMALL}"
MODELS = {
    "one": (engine.MODEL, "", "", "auto"),
    "two": (engine.MODEL, TWO, SMALL_RING, "auto"),
    "broken": (BROKEN, "", "", "auto"),
}
CONFIG = "swap: {size: none}\nengine: {package: vllm-cpu}\nmodels:\n" + "".join(
    MODEL.format(name=name, model=model, port=port, args=args, env=env, load=load)
    for port, (name, (model, args, env, load)) in enumerate(MODELS.items(), start=8000)
)
IN_ORDER = "vllm-safe: reading the checkpoint in order, in "


@pytest.fixture(scope="module")
def bed(nspawn_serving: Nspawn) -> Nspawn:
    nspawn_serving.write("/etc/vllm-safe/config.yaml", CONFIG)
    small = "s/^_LARGEST_RING = .*/_LARGEST_RING = 1 << 20/; s/^_SMALLEST_RING = .*/_SMALLEST_RING = 1/"
    nspawn_serving.run(f"cp --recursive --dereference {PLUGINS} {SMALL}")
    nspawn_serving.run(["sed", "--in-place", small, f"{SMALL}/vllm_safe_loader/ring_layout.py"])
    nspawn_serving.run(f"cp --recursive {engine.MODEL} {BROKEN} && truncate --size=-1000 {BROKEN}/model.safetensors")
    return nspawn_serving


@pytest.fixture(autouse=True)
def _tidy(bed: Nspawn) -> Iterator[None]:
    yield
    bed.run("systemctl stop 'vllm@*' && systemctl reset-failed 'vllm@*'", check=False)


def _answer(bed: Nspawn, name: str) -> str:
    """Return how the model continues the beginning of its sentence."""
    begin = tiny_model.SENTENCE[:20]
    body = json.dumps({"model": name, "prompt": begin, "max_tokens": len(tiny_model.SENTENCE) - 20, "temperature": 0})
    port = 8000 + list(MODELS).index(name)
    url = f"http://127.0.0.1:{port}/v1/completions"
    said = bed.out(["curl", "--silent", "--fail", "--header", "Content-Type: application/json", "--data", body, url])
    return begin + str(json.loads(said)["choices"][0]["text"])


def _forget(bed: Nspawn, model: str = engine.MODEL) -> None:
    """Take a model's file out of the page cache: what is there is not read through the ring."""
    bed.run(f"sync {model}/model.safetensors && dd if={model}/model.safetensors iflag=nocache count=0 status=none")


def test_two_models_that_load_at_once_have_their_weights_and_the_log_says_how(bed: Nspawn) -> None:
    """One of them had been killed in the middle of its load."""
    bed.run(["systemctl", "start", "--no-block", "vllm@two"])
    bed.wait_for("it loads", lambda: "Starting to load model" in bed.journal("vllm@two", lines=500), timeout=300)
    bed.run(["systemctl", "kill", "--signal=KILL", "vllm@two"])
    bed.run(["systemctl", "stop", "vllm@two"], timeout=120)
    _forget(bed)
    bed.run("systemctl start vllm@one & systemctl start vllm@two && wait", timeout=300)
    for name, how in {"one": "6 windows through a ring buffer of 4076 KiB", "two": "11 windows through a ring buffer of 1024 KiB"}.items():
        assert _answer(bed, name) == tiny_model.SENTENCE
        assert IN_ORDER + how in bed.journal(f"vllm@{name}", lines=500)


def test_the_weights_are_those_of_vllms_own_loader_bit_for_bit(bed: Nspawn) -> None:
    bed.put(Path(loaded_weights.__file__), COMPARER)
    python, memory = f"{engine.ENGINES}/current/bin/python", "/run/compared"  # what is in memory already needs no ring
    bed.run(["mkdir", COMPARED, memory])
    bed.run([python, COMPARER, "--make", COMPARED])
    bed.run(f"cp --recursive {COMPARED}/bf16 {memory}/model && ln --symbolic {memory}/model {COMPARED}/memory")
    lines = bed.out(f"PYTHONPATH={SMALL} VLLM_LOGGING_LEVEL=ERROR {python} {COMPARER} {COMPARED}", timeout=300).splitlines()
    same = json.loads(lines[-1])
    assert same == {f"{model} {ranks}": True for model in ("bf16", "gptq", "memory") for ranks in loaded_weights.RANKS}


def test_a_shortened_file_is_vllms_to_tell(bed: Nspawn) -> None:
    assert bed.run(["systemctl", "start", "vllm@broken"], check=False, timeout=300).returncode
    log = bed.journal("vllm@broken", lines=500)
    assert "vllm-safe: vLLM reads the checkpoint itself: " in log
    assert "SafetensorError" in log
