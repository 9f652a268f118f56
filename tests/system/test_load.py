"""The weights as our plugin of vLLM reads them: the real vLLM on the CPU, with one worker and with two."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.beds import engine, tiny_model
from tests.beds.nspawn import Nspawn

pytestmark = [pytest.mark.nspawn, pytest.mark.engine]

PLUGINS = "/usr/lib/vllm-safe/engine-plugins"
BROKEN = "/srv/models/broken"
SMALL = "/opt/small"  # the plugin with windows of 300 kB, a fourteenth of the file
MODEL = """\
  {name}:
    model: {model}
    port: {port}
    args: {{enforce-eager: true{args}}}
    env: {{VLLM_CPU_KVCACHE_SPACE: "1", VLLM_CPU_OMP_THREADS_BIND: nobind, TORCHDYNAMO_DISABLE: "1"{env}}}
    load: {load}
"""
TWO, SMALL_WINDOWS = ", tensor-parallel-size: 2", f", PYTHONPATH: {SMALL}"
MODELS = {
    "one": (engine.MODEL, "", "", "auto"),
    "two": (engine.MODEL, TWO, SMALL_WINDOWS, "auto"),
    "theirs": (engine.MODEL, "", "", "vllm"),
    "broken": (BROKEN, "", "", "auto"),
}
CONFIG = "swap: {size: none}\nengine: {package: vllm-cpu}\nmodels:\n" + "".join(
    MODEL.format(name=name, model=model, port=port, args=args, env=env, load=load)
    for port, (name, (model, args, env, load)) in enumerate(MODELS.items(), start=8000)
)
IN_ORDER = "vllm-safe: the checkpoint is read in order, in "


@pytest.fixture(scope="module")
def bed(nspawn_serving: Nspawn) -> Nspawn:
    nspawn_serving.write("/etc/vllm-safe/config.yaml", CONFIG)
    window = r"s/size = min(.*/size = 300_000/; s/>= _LEAST/>= 0/"
    nspawn_serving.run(
        f"cp --recursive --dereference {PLUGINS} {SMALL} && sed --in-place '{window}' {SMALL}/vllm_safe_loader/cache_room.py"
    )
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


@pytest.mark.parametrize(("name", "windows"), [("one", "in 1 windows"), ("two", "in 11 windows"), ("theirs", "")])
def test_the_model_has_its_weights_and_the_log_says_who_read_them(bed: Nspawn, name: str, windows: str) -> None:
    bed.run(["systemctl", "start", f"vllm@{name}"], timeout=300)
    assert _answer(bed, name) == tiny_model.SENTENCE
    log = bed.journal(f"vllm@{name}", lines=500)
    assert (IN_ORDER in log) == bool(windows)
    assert windows in log


def test_a_shortened_file_is_vllms_to_tell(bed: Nspawn) -> None:
    assert bed.run(["systemctl", "start", "vllm@broken"], check=False, timeout=300).returncode
    log = bed.journal("vllm@broken", lines=500)
    assert "vllm-safe: vLLM reads the checkpoint itself: " in log
    assert "SafetensorError" in log


def test_a_load_that_was_killed_is_done_again(bed: Nspawn) -> None:
    bed.run(["systemctl", "start", "--no-block", "vllm@two"])
    bed.wait_for("it loads", lambda: "Starting to load model" in bed.journal("vllm@two", lines=500), timeout=120)
    bed.run(["systemctl", "kill", "--signal=KILL", "vllm@two"])
    bed.run(["systemctl", "stop", "vllm@two"], timeout=120)
    bed.run(["systemctl", "start", "vllm@two"], timeout=300)
    assert _answer(bed, "two") == tiny_model.SENTENCE
