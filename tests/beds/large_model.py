"""Make a model of 0.9 GB with random weights: `python large_model.py TINY FOLDER`, with an engine's own Python, which has transformers.

It has the tokenizer and the architecture of the tiny model, with more and larger layers, and its weights are in files of 200 MB.
"""

from __future__ import annotations

import shutil
import sys
from importlib import import_module
from pathlib import Path

WIDTH, DEEP = 1024, 30
SHARD = "200MB"


def main(tiny: Path, folder: Path) -> None:
    """Write the config, the weights and the tokenizer to `folder`, readable by every user."""
    torch, transformers = (import_module(name) for name in ("torch", "transformers"))
    for file in tiny.glob("*tokenizer*"):
        shutil.copy(file, folder)
    config = transformers.AutoConfig.from_pretrained(tiny)
    heads, kept = WIDTH // 64, WIDTH // 256  # of 64 each, as those of the tiny model
    values = {"num_attention_heads": heads, "num_key_value_heads": kept, "num_hidden_layers": DEEP}
    config.update({"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, **values, "layer_types": ["full_attention"] * DEEP})
    torch.set_default_dtype(torch.bfloat16)
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder, max_shard_size=SHARD)
    for file in folder.iterdir():
        file.chmod(0o644)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
