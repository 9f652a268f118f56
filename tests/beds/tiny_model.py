"""Make a real model of 4 MB that knows one sentence: `python tiny_model.py FOLDER`, with an engine's own Python, which has transformers.

It has Qwen2's architecture and one token for each byte, and is trained for some seconds until it continues the sentence, so that an answer
can be right or wrong.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

SENTENCE = "The quick brown fox jumps over the lazy dog, and the machine still answers."
HEAD = 64  # the smallest head size that vLLM's attention for CPUs supports
HEADS, KV_HEADS, LAYERS = 4, 2, 2
POSITIONS = 2048
ENOUGH = 0.05  # the loss at which every next byte is nearly certain
END = "<|endoftext|>"
CHAT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def main(folder: Path) -> None:
    """Write the config, the weights and the tokenizer to `folder`, readable by every user."""
    torch, tokenizers, transformers = (import_module(name) for name in ("torch", "tokenizers", "transformers"))

    trainer = tokenizers.ByteLevelBPETokenizer()
    trainer.train_from_iterator([], vocab_size=257, special_tokens=[END], show_progress=False)
    trainer.save(str(folder / "tokenizer.json"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), eos_token=END, pad_token=END)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)

    torch.manual_seed(0)
    torch.set_num_threads(1)  # such a small model would only wait for its other threads, much longer where CPUs are busy
    config = transformers.Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=HEAD * HEADS,
        intermediate_size=4 * HEAD * HEADS,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=POSITIONS,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    model = transformers.Qwen2ForCausalLM(config)
    tokens = torch.tensor([[*tokenizer(SENTENCE).input_ids, tokenizer.eos_token_id]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    loss = 1.0
    while loss > ENOUGH:
        result = model(input_ids=tokens, labels=tokens)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        loss = result.loss.item()
    model.to(torch.bfloat16).save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
