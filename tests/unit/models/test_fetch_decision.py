"""Tests of which files are fetched, whether they fit, and of the findings on a model's files."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_safe.common.errors import Failure
from vllm_safe.common.findings import Level
from vllm_safe.common.sizes import GIB
from vllm_safe.models.fetch_decision import ModelDisk, find_model, plan_fetch, require_room
from vllm_safe.models.hub_model import HubFile
from vllm_safe.models.model_files import ModelFiles

KEPT = ("config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "tokenizer.json", "modeling_own.py")


def files(*names: str, size: int = 100) -> tuple[HubFile, ...]:
    return tuple(HubFile(name, size) for name in names)


@pytest.mark.parametrize(
    "name",
    [
        "original/consolidated.00.pth",
        "original/params.json",
        "metal/model.bin",
        "pytorch_model-00001-of-00002.bin",
        "consolidated.00.pth",
        "model-q4_k_m.gguf",
        "onnx/model.onnx",
        "onnx/model.onnx_data",
        "sub/flax_model.msgpack",
        "tf_model.h5",
    ],
)
def test_other_forms_of_the_same_weights_are_left_out(name: str) -> None:
    plan = plan_fetch("acme/m", "c0ffee", files(*KEPT, name))
    assert [file.name for file in plan.files] == list(KEPT)
    assert [file.name for file in plan.left_out] == [name]
    assert plan.size == 100 * len(KEPT)


@pytest.mark.parametrize(
    "name", ["consolidated.safetensors", "params.json", "tekken.json", "adapter/model.safetensors", "args.bin", "LICENSE"]
)
def test_what_vllm_may_want_is_kept(name: str) -> None:
    assert plan_fetch("acme/m", "c0ffee", files(*KEPT, name)).left_out == ()


def test_without_safetensors_everything_is_fetched() -> None:
    plan = plan_fetch("acme/m", "c0ffee", files("config.json", "pytorch_model.bin", "original/x.safetensors"))
    assert plan.left_out == ()
    assert plan.patterns == ()


def test_only_gguf_and_nothing_at_all_are_refused() -> None:
    with pytest.raises(Failure, match="only as GGUF") as gguf:
        plan_fetch("acme/m", "c0ffee", files("config.json", "m-Q4.gguf", "m-Q8.gguf"))
    assert "safetensors" in gguf.value.hint
    with pytest.raises(Failure, match="no weights that vLLM can read"):
        plan_fetch("acme/m", "c0ffee", files("README.md"))
    with pytest.raises(Failure, match="no weights"):
        plan_fetch("acme/m", "c0ffee", ())


def test_what_is_here_needs_no_transfer() -> None:
    plan = plan_fetch("acme/m", "c0ffee1234567", (HubFile("config.json", 10, 10), HubFile("m.safetensors", 100, 40)))
    assert (plan.size, plan.missing) == (110, 60)
    assert plan.summary == "2 files, 110 B, of acme/m (revision c0ffee1234)"


def test_room_is_needed_only_for_what_is_missing() -> None:
    plan = plan_fetch("acme/m", "c0ffee", (HubFile("m.safetensors", 70 * GIB, 30 * GIB),))
    assert require_room(plan, ModelDisk("/m", free=50 * GIB, keep_free=10 * GIB)) == ""
    with pytest.raises(Failure, match=r"40.0 GiB are to be fetched and 10.0 GiB must stay free .* /m has 49.0 GiB free") as short:
        require_room(plan, ModelDisk("/m", free=49 * GIB, keep_free=10 * GIB))
    assert short.value.hint.startswith("Free 1.0 GiB")


def test_a_swapfile_that_will_not_fit_beside_it_is_warned_of() -> None:
    plan = plan_fetch("acme/m", "c0ffee", files("m.safetensors", size=70 * GIB))
    assert require_room(plan, ModelDisk("/m", free=208 * GIB, keep_free=10 * GIB, swapfile=128 * GIB)) == ""
    assert "the swapfile (128G)" in require_room(plan, ModelDisk("/m", free=207 * GIB, keep_free=10 * GIB, swapfile=128 * GIB))


FOLDER = Path("/var/lib/vllm-safe/models/acme/m")


@pytest.mark.parametrize(
    ("facts", "what", "do_next"),
    [
        (ModelFiles(FOLDER, "acme/m"), "acme/m is not fetched yet", "vllm-safe fetch tiny"),
        (ModelFiles(FOLDER, "acme/m", partial=GIB), "acme/m is fetched only in part (1.0 GiB)", "vllm-safe fetch tiny"),
        (ModelFiles(FOLDER, "acme/m", present=True, problem="2 of 3 gone"), "incomplete: 2 of 3 gone", "vllm-safe fetch tiny"),
        (ModelFiles(Path("/srv/m")), "the folder /srv/m does not exist", "models.tiny.model"),
        (ModelFiles(Path("/srv/m"), present=True, problem="it has no config.json"), "it has no config.json", "Copy it again"),
    ],
)
def test_what_is_missing_is_named_with_the_command_that_brings_it(facts: ModelFiles, what: str, do_next: str) -> None:
    finding = find_model("tiny", facts)
    assert finding.level is Level.FAIL
    assert what in finding.what
    assert do_next in finding.do_next


def test_a_complete_model_passes() -> None:
    finding = find_model("tiny", ModelFiles(FOLDER, "acme/m", present=True, commit="c", count=3, size=GIB))
    assert (finding.level, finding.what) == (Level.PASS, f"the files of acme/m are in {FOLDER} (3 files, 1.0 GiB)")
