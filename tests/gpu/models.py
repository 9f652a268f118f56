"""Models for the scenarios: the tiny one that knows a sentence, and one of 14 GB with random weights, made by the engine's own Python.

`python -m tests.gpu.models FOLDER` writes the large one: Qwen2.5-7B's shape in bf16, in nine files as on the hub.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

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


def shapes() -> dict[str, tuple[int, ...]]:
    """Return the name and shape of each tensor."""
    kv = KV_HEADS * HEAD
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "lm_head.weight": (VOCABULARY, HIDDEN)}
    found["model.norm.weight"] = (HIDDEN,)
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        found |= {
            f"{prefix}.self_attn.{name}_proj.weight": (size, HIDDEN) for name, size in (("q", HIDDEN), ("k", kv), ("v", kv), ("o", HIDDEN))
        }
        found |= {f"{prefix}.self_attn.{name}_proj.bias": (size,) for name, size in (("q", HIDDEN), ("k", kv), ("v", kv))}
        found |= {f"{prefix}.mlp.{name}_proj.weight": (INTERMEDIATE, HIDDEN) for name in ("gate", "up")}
        found |= {f"{prefix}.mlp.down_proj.weight": (HIDDEN, INTERMEDIATE), f"{prefix}.input_layernorm.weight": (HIDDEN,)}
        found[f"{prefix}.post_attention_layernorm.weight"] = (HIDDEN,)
    return found


def make_large(folder: Path) -> None:
    """Write the large model, without a tokenizer, since it uses that of the tiny model."""
    torch, save = import_module("torch"), import_module("safetensors.torch").save_file
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    where: dict[str, str] = {}
    names = list(shapes().items())
    for number in range(FILES):
        file = f"model-{number + 1:05}-of-{FILES:05}.safetensors"
        tensors = {name: (torch.randn(shape, device=device, dtype=torch.bfloat16) * 0.02).cpu() for name, shape in names[number::FILES]}
        save(tensors, folder / file)
        where |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / "config.json").write_text(json.dumps(CONFIG))


if __name__ == "__main__":
    make_large(Path(sys.argv[1]))
