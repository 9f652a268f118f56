"""The combinations that vLLM refuses before it loads anything, however much memory there is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from vllm_safe.plan.model_config import ModelConfig
from vllm_safe.plan.plan_question import PlanQuestion
from vllm_safe.plan.serving import Batch, Serving

# The oldest compute capability of each method: its get_min_capability() in model_executor/layers/quantization. config/vllm.py:900 refuses
# older GPUs; for compressed-tensors that is 7.0, and each of its usual schemes then refuses 7.0 (compressed_tensors.py:994).
OLDEST_CAPABILITIES: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "awq": (7, 5),  # auto_awq.py:233
        "compressed-tensors": (7, 5),  # compressed_tensors/schemes: WNA16, W8A8 and W8A16 with FP8
        "experts_int8": (8, 0),  # experts_int8.py:42
        "fbgemm_fp8": (8, 0),  # fbgemm_fp8.py:66
        "fp8": (7, 5),  # fp8.py:146
        "fp_quant": (10, 0),  # fp_quant.py:63
        "gptq": (6, 0),  # auto_gptq.py:182; Marlin from 7.5 on (utils/marlin_utils.py:66), before it Exllama
        "modelopt": (8, 0),  # modelopt.py:445
        "modelopt_fp4": (7, 5),  # modelopt.py:768
        "modelopt_mxfp8": (8, 0),  # modelopt.py:1200
        "mxfp4": (8, 0),  # mxfp4.py:71
        "mxfp8": (8, 0),  # modelopt.py:1200
        "torchao": (7, 5),  # torchao.py:160
    }
)
_LEAST_MOE_GROUP = 32  # quantization/moe_wna16.py:288


def find_obstacle(question: PlanQuestion, batch: Batch) -> str:
    """Return why vLLM would end at once, in one sentence, or ""."""
    return next(_obstacles(question, batch), "")


def _obstacles(question: PlanQuestion, batch: Batch) -> Iterator[str]:
    config, serving, cards = question.config, question.serving, question.cards[: question.serving.ranks]
    if serving.ranks > len(cards):
        there = "there is 1" if len(cards) == 1 else f"there are {len(cards)}"
        yield f"{_count(serving.ranks, 'GPU')} would be needed (tensor-parallel-size x pipeline-parallel-size), and {there}"
    yield from _split_obstacles(config, serving)
    # Before 0.32, vLLM multiplied the length by the factor of YaRN, which the rotary table has, too (config/model.py:2592).
    most = config.max_positions if serving.version >= (0, 32) else max(config.max_positions, config.rotary_positions)
    if batch.max_model_len > most and not serving.any_length and not serving.unplanned:
        yield f"max-model-len {batch.max_model_len} exceeds the model's own {config.max_positions}"
    old = min((card.capability for card in cards), default=(99, 0))
    if old < (8, 0) and serving.dtype == "bfloat16":
        yield f"dtype bfloat16 needs compute capability 8.0, and a GPU has {old[0]}.{old[1]}: half would do"
    if config.family == "qwen2" and len(set(config.windows)) > 1:  # models/qwen2.py
        yield "vLLM does not serve a Qwen2 of which only some layers have a sliding window (max_window_layers)"
    quantization = config.quantization
    ordered = quantization is not None and quantization.method == "gptq" and quantization.activation_order and quantization.group > 0
    if ordered and serving.version >= (0, 32):  # quantization/utils/gptq_utils.py:23
        yield "vLLM 0.32 no longer serves GPTQ with activation order (desc_act)"
    oldest = OLDEST_CAPABILITIES.get(quantization.method) if quantization else None
    if quantization and oldest and old < oldest:
        yield f"{quantization.method} needs compute capability {oldest[0]}.{oldest[1]}, and a GPU has {old[0]}.{old[1]}"


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
        part, group = width // split, quantization.group
        if width == (config.experts.intermediate if config.experts else 0) and quantization.method in {"gptq", "awq"}:
            while part % group and group > _LEAST_MOE_GROUP:  # moe_wna16.py:285: groups are halved until they fit
                group //= 2
        if split > 1 and part % group:
            yield (
                f"with tensor-parallel-size {split} each GPU has {part} inputs of a layer, which its quantisation's groups of"
                f" {quantization.group} do not divide"
            )
    if stages > config.layers:
        yield f"pipeline-parallel-size {stages} is more than the {config.layers} layers"
    if serving.layer_partition and (len(serving.layer_partition) != stages or sum(serving.layer_partition) != config.layers):
        yield f"VLLM_PP_LAYER_PARTITION has to give {_count(stages, 'stage')} {config.layers} layers in all"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
