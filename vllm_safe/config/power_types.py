"""Power limits of GPUs as people write them: 170W or 75%, for all GPUs or by GPU."""

from __future__ import annotations

import re
from collections.abc import Mapping as MappingOf
from dataclasses import replace
from typing import NamedTuple

from vllm_safe.config.document import Mapping, Node, Scalar
from vllm_safe.config.mismatch import Mismatch, MismatchError, mismatch, node_text

EVERY_CARD = "all"  # in place of the name of a GPU
_MOST_WATTS, _MOST_PERCENT = 5000.0, 200.0  # beyond any card; the range of the card itself is checked where it is known
_CAP = re.compile(r"\s*(\d{1,5}(?:\.\d{1,3})?)\s*(%|w|watts?)\s*", re.IGNORECASE | re.ASCII)
# What `nvidia-smi -i` takes: a number, a UUID, a PCI bus id with its domain in 4 or 8 digits.
_NAME = re.compile(
    r"[0-9]{1,2}|GPU-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|(?:[0-9a-f]{4,8}:)?[0-9a-f]{2}:[0-9a-f]{2}(?:\.[0-7])?", re.IGNORECASE
)
_EXPECTED_NAME = "a GPU as nvidia-smi names it: its number, its UUID (GPU-...) or its PCI address such as 0000:01:00.0"


class PowerCap(NamedTuple):
    """A power limit: watts, or a percentage of the GPU's default limit."""

    value: float
    is_percent: bool

    def of(self, default: int) -> int:
        """Return the limit in milliwatts. default: the GPU's own, in milliwatts."""
        return round(default * self.value / 100) if self.is_percent else round(self.value * 1000)

    def __str__(self) -> str:
        return f"{self.value:g}{'%' if self.is_percent else 'W'}"


def read_power_caps(node: Node) -> dict[str, PowerCap]:
    """Read the limits by the name of a GPU, EVERY_CARD for a limit of all. Raises MismatchError."""
    if not isinstance(node, Mapping):
        return {EVERY_CARD: _cap(node)}
    if not node.items:
        raise MismatchError(Mismatch(node, "names no GPU"))
    caps: dict[str, PowerCap] = {}
    flaws: list[Mismatch] = []
    for name, value in node.items:
        if not _NAME.fullmatch(name.text):
            flaws.append(Mismatch(name, f"cannot name a GPU {name.text!r}", _EXPECTED_NAME))
            continue
        try:
            caps[name.text] = _cap(value)
        except MismatchError as error:
            flaws += (replace(flaw, problem=f"of GPU {name.text} {flaw.problem}") for flaw in error.flaws)
    if flaws:
        raise MismatchError(*flaws)
    return caps


def write_power_caps(caps: MappingOf[str, PowerCap]) -> str:
    """Write the limits as YAML."""
    if list(caps) == [EVERY_CARD]:
        return str(caps[EVERY_CARD])
    return f"{{{', '.join(f'{name}: {cap}' for name, cap in caps.items())}}}"


def _cap(node: Node) -> PowerCap:
    text = node_text(node)
    if not (match := _CAP.fullmatch(text)):
        raise mismatch(node, _retyped_cap(text) if isinstance(node, Scalar) else "")
    cap = PowerCap(float(match[1]), match[2] == "%")
    if not 0 < cap.value <= (_MOST_PERCENT if cap.is_percent else _MOST_WATTS):
        raise mismatch(node)
    return cap


def _retyped_cap(text: str) -> str:
    """Return the limit that was probably meant by a number without a unit, or ""."""
    if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,3})?", text) or not (number := float(text)):
        return ""
    return f"{number * 100:g}%" if number <= 1 else f"{number:g}W"
