"""Models for the scenarios, with random weights, made by the engine's own Python: `python models.py FOLDER [KIND]`.

`large` has Qwen2.5-7B's shape in bf16, 14 GB in nine files as on the hub. `short` is its first four layers, and `short-gptq` those with
eight-bit integers as GPTQ stores them, each in three files.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

LAYERS, HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD = 28, 3584, 18944, 28, 4, 128
VOCABULARY, POSITIONS = 152064, 32768
FILES = 9
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": POSITIONS,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "eos_token_id": 0,
}


KINDS = {"large": (LAYERS, FILES, False), "short": (4, 3, False), "short-gptq": (4, 3, True)}  # layers, files, whether it is GPTQ
GROUP = 128  # rows of a GPTQ matrix with one scale


def shapes(layers: int = LAYERS) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of each tensor."""
    kv = KV_HEADS * HEAD
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "lm_head.weight": (VOCABULARY, HIDDEN)}
    found["model.norm.weight"] = (HIDDEN,)
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        found |= {
            f"{prefix}.self_attn.{name}_proj.weight": (size, HIDDEN) for name, size in (("q", HIDDEN), ("k", kv), ("v", kv), ("o", HIDDEN))
        }
        found |= {f"{prefix}.self_attn.{name}_proj.bias": (size,) for name, size in (("q", HIDDEN), ("k", kv), ("v", kv))}
        found |= {f"{prefix}.mlp.{name}_proj.weight": (INTERMEDIATE, HIDDEN) for name in ("gate", "up")}
        found |= {f"{prefix}.mlp.down_proj.weight": (HIDDEN, INTERMEDIATE), f"{prefix}.input_layernorm.weight": (HIDDEN,)}
        found[f"{prefix}.post_attention_layernorm.weight"] = (HIDDEN,)
    return found


def make_model(folder: Path, kind: str) -> None:
    """Write a model, without a tokenizer, since it uses that of the tiny model."""
    torch, save = import_module("torch"), import_module("safetensors.torch").save_file
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layers, files, gptq = KINDS[kind]

    def random(name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, Any]]:
        if not gptq or not name.endswith("proj.weight"):
            yield name, (torch.randn(shape, device=device, dtype=torch.float16 if gptq else torch.bfloat16) * 0.02).cpu()
            return
        columns, rows = shape  # of Linear; GPTQ stores the transposed matrix, four values in an int32
        stem = name.removesuffix("weight")
        yield stem + "qweight", torch.randint(-(1 << 31), 1 << 31, (rows // 4, columns), dtype=torch.int32)
        yield stem + "qzeros", torch.full((rows // GROUP, columns // 4), 0x7F7F7F7F, dtype=torch.int32)
        yield stem + "scales", torch.rand(rows // GROUP, columns).half() * 1e-3
        yield stem + "g_idx", torch.arange(rows, dtype=torch.int32) // GROUP

    where: dict[str, str] = {}
    names = list(shapes(layers).items())
    for number in range(files):
        file = f"model-{number + 1:05}-of-{files:05}.safetensors"
        tensors = dict(pair for name, shape in names[number::files] for pair in random(name, shape))
        save(tensors, folder / file)
        where |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    config: dict[str, Any] = {**CONFIG, "num_hidden_layers": layers}
    if gptq:
        scheme = {"quant_method": "gptq", "bits": 8, "group_size": GROUP, "desc_act": False, "sym": True, "lm_head": False}
        config |= {"torch_dtype": "float16", "quantization_config": scheme}
    (folder / "config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    make_model(Path(sys.argv[1]), *sys.argv[2:] or ["large"])
