"""The commented sample configuration, made from the table of settings: `vllm-safe config --sample` prints it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from textwrap import wrap

from vllm_safe.config import value_types
from vllm_safe.config.profiles import PROFILES
from vllm_safe.config.settings import SECTIONS, Model, Setting, settings_of

_WIDTH = 100
_GLUE = "\0"  # stands for a space at which a line must not be broken

_HEADER = """\
# A sample of /etc/vllm-safe/config.yaml with every setting of vllm-safe, as `vllm-safe config --sample`
# prints it. A setting that the file does not have has its default. After a change:
#
#     vllm-safe check                    is everything as it should be?
#     systemctl restart vllm@NAME        serve with it
#
# A size is written as 512M, 128G or 1.5 GiB (K, M, G and T are powers of 1024), a share as 90%, a time
# as 90s, 15min or 2h. A setting with # right before its name is not set: it shows the default, or an
# example where there is none."""

# The models that the file shows, with settings as YAML in place of their defaults. The first is the installation plan's.
_PLANS_MODEL = {
    "model": "Qwen/Qwen2.5-72B-Instruct-GPTQ-Int8",
    "port": "8000",
    "host": "127.0.0.1",
    "profile": "pcie-riser",
    "args": """
tensor-parallel-size: 8         # one slice of the model on each of 8 GPUs
gpu-memory-utilization: 0.90    # of each GPU's memory
max-model-len: 8192             # tokens of a prompt and its answer together
max-num-seqs: 32                # concurrent requests; fewer leave more memory for each""",
}
_OTHER = "Any other server gets the same protection:"
_OTHER_SERVER = {"command": "[/usr/local/bin/llama-server, --model, /srv/models/small.gguf, --port, 8001]", "port": "8001"}


def sample_config() -> str:
    """Return the text of the file."""
    return "\n".join(line.rstrip() for line in _lines()) + "\n"


def _lines() -> Iterator[str]:
    yield from (_HEADER, "")
    for name, section in SECTIONS.items():
        yield from (*_comment(section.__doc__ or ""), f"{name}:")
        for row in settings_of(section):
            yield from (*_indented(_setting(row)), "")
    yield from (*_comment(Model.__doc__ or ""), "models:", "  qwen72b:")
    for row in settings_of(Model):
        if row.name != "command":
            yield from (*_indented(_setting(row, _PLANS_MODEL), 4), "")
    yield from _indented(_comment(_OTHER))
    yield "  #small:"
    for name, value in _OTHER_SERVER.items():
        yield f"  #  {name}: {value}"


def _setting(row: Setting, model: Mapping[str, str] | None = None) -> Iterator[str]:
    """Yield the lines of a setting with its explanation. Its value is that of `model`, or its default; else it is a comment."""
    yield from _comment(_explanation(row))
    if model is not None and row.name in model:
        first, *more = model[row.name].split("\n")
        yield f"{row.name}: {first}".rstrip()
        yield from _indented(more)
    elif model is not None or row.moves or row.example:
        yield f"#{row.name}: {row.example or row.kind.write(row.default)}"
    else:
        yield f"{row.name}: {row.kind.write(row.default)}"


def _explanation(row: Setting) -> str:
    if row.kind is not value_types.PROFILE:
        return row.doc
    return "\n".join([row.doc, *(f"  {profile.name}: {profile.reason}" for profile in PROFILES.values())])


def _comment(text: str) -> Iterator[str]:
    """Yield the wrapped lines of a comment. Text between backticks is not broken, and an item of a list keeps its indentation."""
    for paragraph in re.sub("`[^`]*`", lambda words: words[0].replace(" ", _GLUE), text).split("\n"):
        margin, hang = ("# ", "# ") if not paragraph.startswith("  ") else ("#   ", "#     ")
        for line in wrap(paragraph.strip(), _WIDTH, initial_indent=margin, subsequent_indent=hang, break_on_hyphens=False):
            yield line.replace(_GLUE, " ")


def _indented(lines: Iterable[str], by: int = 2) -> Iterator[str]:
    return (" " * by + line for line in lines)
