"""What vLLM refuses before it loads anything, whatever the memory."""

from __future__ import annotations

from collections.abc import Iterator

from vllm_safe.plan.model_config import ModelConfig
from vllm_safe.plan.plan_question import PlanQuestion
from vllm_safe.plan.serving import Batch, Serving


def find_obstacle(question: PlanQuestion, batch: Batch) -> str:
    """Return why vLLM would end at once, in one sentence, or ""."""
    return next(_obstacles(question, batch), "")


def _obstacles(question: PlanQuestion, batch: Batch) -> Iterator[str]:
    config, serving, cards = question.config, question.serving, question.cards
    if serving.ranks > len(cards):
        yield f"{_count(serving.ranks, 'card')} would be needed (tensor-parallel-size x pipeline-parallel-size), and there are {len(cards)}"
    yield from _split_obstacles(config, serving)
    if batch.max_model_len > config.max_positions and not serving.unplanned:
        yield f"max-model-len {batch.max_model_len} exceeds the model's own {config.max_positions}"
    old = min((card.capability for card in cards), default=(99, 0))
    if old < (8, 0) and serving.dtype == "bfloat16":
        yield f"dtype bfloat16 needs compute capability 8.0, and a card has {old[0]}.{old[1]}: half would do"
    if config.family == "qwen2" and len(set(config.windows)) > 1:  # models/qwen2.py
        yield "vLLM does not serve a Qwen2 of which only some layers have a sliding window (max_window_layers)"
    quantization = config.quantization
    ordered = quantization is not None and quantization.method == "gptq" and quantization.activation_order and quantization.group > 0
    if ordered and serving.version >= (0, 32):  # quantization/utils/gptq_utils.py:23
        yield "vLLM 0.32 no longer serves GPTQ with activation order (desc_act)"
    if old < (7, 5) and quantization:
        yield f"the kernels for {quantization.method} need compute capability 7.5, and a card has {old[0]}.{old[1]}"


def _split_obstacles(config: ModelConfig, serving: Serving) -> Iterator[str]:
    split, stages = serving.tensor_parallel, serving.pipeline_parallel
    if config.heads % split:  # config/model.py verify_with_parallel_config
        yield f"the {config.heads} attention heads cannot be divided by tensor-parallel-size {split}"
    elif not config.latent and config.kv_heads % split and split % config.kv_heads:
        yield f"the {config.kv_heads} KV heads cannot be divided by tensor-parallel-size {split}"
    width = config.experts.intermediate if config.experts and len(config.experts.layers) == config.layers else config.intermediate
    padded = config.experts is not None and (serving.expert_parallel or config.family == "gpt_oss")
    if width % split and not padded:
        yield f"the intermediate size {width} cannot be divided by tensor-parallel-size {split}"
    elif (quantization := config.quantization) and quantization.packed and quantization.group > 0 and not padded:
        part = width // split
        if split > 1 and part % quantization.group:
            yield (
                f"with tensor-parallel-size {split} each card has {part} inputs of a layer, which its quantisation's groups of"
                f" {quantization.group} do not divide"
            )
    if stages > config.layers:
        yield f"pipeline-parallel-size {stages} is more than the {config.layers} layers"
    if serving.layer_partition and (len(serving.layer_partition) != stages or sum(serving.layer_partition) != config.layers):
        yield f"VLLM_PP_LAYER_PARTITION has to give {_count(stages, 'stage')} {config.layers} layers in all"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
