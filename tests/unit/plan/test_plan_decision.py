"""Tests of the verdict: it starts, it does not, or it is too close to tell."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import pytest

from tests.truth.starts import CARDS, model_config
from vllm_safe.common.sizes import GIB
from vllm_safe.plan.plan_decision import decide_plan
from vllm_safe.plan.plan_question import Observed, Plan, PlanQuestion
from vllm_safe.plan.quantization_config import Quantization
from vllm_safe.plan.serving import Card, Serving
from vllm_safe.plan.tensors import Tensor, list_tensors

RTX = CARDS["RTX 3060"]
BIG = "qwen2.5-72b-instruct-gptq8"


def question(name: str, cards: tuple[Card, ...] = (RTX,), **serving: object) -> PlanQuestion:
    return PlanQuestion(model_config(name), Serving(**serving), cards)


def plan(name: str, cards: tuple[Card, ...] = (RTX,), **serving: object) -> Plan:
    return decide_plan(question(name, cards, **serving))


def test_a_small_model_starts() -> None:
    found = plan("qwen2.5-0.5b")
    assert (found.starts, found.longest_context, found.unknown) == (True, 32768, ())
    assert found.reason.endswith("GiB are left for the KV cache of the fullest GPU")
    assert found.batch
    assert found.requests_at_once == pytest.approx(found.kv_tokens / found.batch.max_model_len, rel=0.01)


def test_weights_that_are_larger_than_the_card() -> None:
    found = plan("llama-8b")
    assert found.starts is False
    assert found.reason.startswith(
        "no memory would be left for the KV cache: of the 10.8 GiB that vLLM may use of GPU 0, the weights take 15.0 GiB"
    )
    assert (found.kv_tokens, found.longest_context, found.kv_bytes) == (0, 0, (0,))


def test_a_context_that_does_not_fit() -> None:
    found = plan("llama-8b-w4a16")
    assert found.starts is False
    assert "would not hold one request of max-model-len 131072" in found.reason
    assert 0 < found.sure_context < found.longest_context < 131072


def test_between_the_sure_context_and_the_longest_it_is_too_close_to_tell() -> None:
    free = plan("llama-8b-w4a16", max_model_len=-1)
    assert free.batch
    assert free.batch.max_model_len == free.longest_context
    inside = plan("llama-8b-w4a16", max_model_len=(free.sure_context + free.longest_context) // 2)
    assert (inside.starts, inside.reason[:18]) == (None, "too close to tell:")
    assert plan("llama-8b-w4a16", max_model_len=free.sure_context).starts is True
    assert plan("llama-8b-w4a16", max_model_len=free.longest_context + 16).starts is None  # on an estimate's last tokens nothing is refused


def test_the_eight_cards_of_the_readme() -> None:
    few = {"tensor_parallel": 8, "max_model_len": 8192, "max_num_seqs": 4, "max_num_batched_tokens": 1024, "enforce_eager": True}
    found = plan(BIG, (RTX,) * 8, **few)
    assert (found.starts, len(found.weights), found.weights[0]) == (True, 8, pytest.approx(8.95 * GIB, rel=0.01))


def test_what_others_use_of_a_card() -> None:
    found = plan("qwen2.5-0.5b", (replace(RTX, used=6 * GIB),))
    assert found.starts is False
    assert "vLLM would ask for 10.8 GiB of GPU 0, of which 5.8 GiB are free (gpu-memory-utilization 0.92)" in found.reason


def test_a_share_that_leaves_no_room_for_cuda_itself() -> None:
    found = plan("qwen2.5-0.5b", gpu_memory_utilization=0.98)
    assert (found.starts, "GPU 0 might not have the memory" in found.reason) == (None, True)


def test_a_model_that_is_not_known() -> None:
    config = replace(model_config("llama-8b"), family="", architecture="New", unknown=("architecture New",))
    found = decide_plan(PlanQuestion(config, Serving(), (RTX,)))
    assert (found.starts, found.reason, found.unknown) == (
        None,
        "the size of its weights is not known: its files are missing",
        ("architecture New",),
    )


def test_its_files_tell_what_the_family_does_not() -> None:
    config = replace(model_config("qwen2.5-0.5b"), family="", unknown=("architecture New",))
    found = decide_plan(PlanQuestion(config, Serving(), (RTX,), list_tensors(model_config("qwen2.5-0.5b"))))
    assert (found.starts, "weights" in found.exact) == (True, False)


def test_an_option_that_is_not_computed_is_said() -> None:
    found = plan("qwen2.5-0.5b", unplanned=("enable-lora",))
    assert found.unknown == ("the option enable-lora",)


def test_sizes_alone_of_a_model_that_is_not_known() -> None:
    config = replace(model_config("llama-1b"), family="", architecture="New")
    found = decide_plan(PlanQuestion(config, Serving(tensor_parallel=2, max_model_len=8192), (RTX,) * 2, size=4 * GIB))
    assert (found.starts, found.weights, "weights" in found.exact) == (True, (2 * GIB, 2 * GIB), False)
    assert found.unknown == ("the split of the weights over GPUs: only the sizes of the files are known",)


@pytest.mark.parametrize(
    ("serving", "unknown"),
    [
        ({"quantization": "bitsandbytes"}, "quantization bitsandbytes"),
        ({"kv_cache_dtype": "turboquant"}, "kv-cache-dtype turboquant"),
        ({"dtype": "float8"}, "dtype float8"),
        ({"unplanned": ("cpu-offload-gb",)}, "the option cpu-offload-gb"),
    ],
)
def test_what_could_be_of_any_size_leaves_a_doubt(serving: dict[str, object], unknown: str) -> None:
    found = plan("qwen2.5-0.5b", **serving)
    assert (found.unknown, found.doubtful) == ((unknown,), True)


@pytest.mark.parametrize(
    ("serving", "unknown"),
    [
        ({"version": (0, 40)}, "vLLM 0.40: the figures are those of 0.32"),
        ({"unplanned": ("limit-mm-per-prompt",)}, "the option limit-mm-per-prompt"),
    ],
)
def test_what_a_margin_has_room_for_leaves_none(serving: dict[str, object], unknown: str) -> None:
    found = plan("qwen2.5-0.5b", **serving)
    assert (found.unknown, found.doubtful, found.starts) == ((unknown,), False, True)


def test_the_encoders_of_a_multimodal_model_are_said() -> None:
    asked = question("qwen2.5-0.5b")
    found = decide_plan(replace(asked, config=replace(asked.config, multimodal=True)))
    assert ("encoders" in found.unknown[0], found.doubtful) == (True, False)


def test_a_quantisation_whose_tensors_are_not_known() -> None:
    """Without files, nobody can say what it weighs; the family alone must not be taken for an answer."""
    asked = question("qwen2.5-0.5b")
    found = decide_plan(replace(asked, config=replace(asked.config, quantization=Quantization("bitsandbytes"))))
    assert (found.starts, found.reason) == (None, "the size of its weights is not known: its files are missing")


def test_what_vllm_refuses() -> None:
    assert (
        plan("qwen2.5-0.5b", (RTX,) * 4, tensor_parallel=4).reason == "the 14 attention heads cannot be divided by tensor-parallel-size 4"
    )


def test_a_cache_of_a_given_size() -> None:
    found = plan("qwen2.5-0.5b", kv_cache_memory=GIB)
    assert (found.kv_bytes, found.kv_tokens, "kv_tokens" in found.exact) == ((GIB,), GIB // (12288 * 16) * 16, True)
    assert plan("qwen2.5-0.5b", kv_cache_memory=12 * GIB).starts is None


def test_quantised_while_it_loads() -> None:
    plain, half = plan("qwen2.5-7b", max_model_len=8192), plan("qwen2.5-7b", max_model_len=8192, max_num_seqs=64, quantization="fp8")
    assert (plain.starts, half.starts) == (False, True)
    assert half.weights[0] == pytest.approx(plain.weights[0] - 6.53e9, rel=0.02)  # a byte of each value in a linear layer
    stored = replace(
        question("qwen2.5-7b", max_model_len=8192, max_num_seqs=64, quantization="fp8"), tensors=list_tensors(model_config("qwen2.5-7b"))
    )
    assert decide_plan(stored).weights[0] == pytest.approx(half.weights[0], rel=0.001)


def test_lines_say_what_is_exact() -> None:
    lines = {line.label: line for line in plan("qwen2.5-0.5b").lines}
    assert [line.label for line in lines.values() if line.exact] == ["may use", "weights"]
    assert lines["weights"].why == "from config.json, as vLLM splits and repacks it"
    parts = sum(
        lines[label].size or 0 for label in ("weights", "activations", "compilation", "buffers", "libraries", "CUDA graphs", "KV cache")
    )
    assert parts == lines["may use"].size


class TestLearning:
    SERVING: ClassVar[dict[str, object]] = {"max_model_len": 4096, "max_num_seqs": 16, "enforce_eager": True}

    def seen(self, **change: object) -> Observed:
        return Observed(Serving(**{**self.SERVING, **change}), weights=(int(8.9 * GIB),), available=GIB, kv_tokens=7272)

    def test_the_second_start_is_exact(self) -> None:
        found = decide_plan(replace(question("llama-8b-w4a16", **self.SERVING), observed=(self.seen(),)))
        assert (found.weights, found.kv_bytes, found.kv_tokens) == ((int(8.9 * GIB),), (GIB,), 7272)
        assert found.exact == {"weights", "kv_bytes", "kv_tokens", "longest_context", "requests_at_once"}
        assert found.sure_context == found.longest_context

    def test_what_vllm_rounded_is_computed(self) -> None:
        asked = question("llama-8b-w4a16", **self.SERVING)
        computed = decide_plan(asked).weights[0]
        printed = replace(self.seen(), weights=(int(round(computed / GIB, 2) * GIB),))
        assert decide_plan(replace(asked, observed=(printed,))).weights == (computed,)

    def test_a_changed_one_is_corrected(self) -> None:
        changed = question("llama-8b-w4a16", **{**self.SERVING, "max_num_seqs": 64})
        before = decide_plan(question("llama-8b-w4a16", **self.SERVING)).kv_bytes[0]
        found = decide_plan(replace(changed, observed=(self.seen(),)))
        assert found.kv_bytes[0] == decide_plan(changed).kv_bytes[0] + GIB - before
        assert "kv_bytes" not in found.exact

    def test_one_that_was_split_otherwise_says_nothing(self) -> None:
        other = self.seen(enforce_eager=False)
        asked = question("llama-8b-w4a16", **self.SERVING)
        assert decide_plan(replace(asked, observed=(other,))).kv_bytes == decide_plan(asked).kv_bytes


def test_tensors_of_a_vision_tower_are_counted() -> None:
    tensors = list_tensors(model_config("qwen2.5-0.5b"))
    tower = Tensor("vision_tower.layers.3.mlp.fc1.weight", (4096, 4096), "BF16")
    with_it = replace(question("qwen2.5-0.5b"), tensors=(*tensors, tower))
    without = replace(question("qwen2.5-0.5b"), tensors=tensors)
    assert decide_plan(with_it).weights[0] - decide_plan(without).weights[0] == 32 << 20
