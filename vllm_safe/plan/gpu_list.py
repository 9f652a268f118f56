"""GPUs that are described in a text, such as "8 x 12GiB sm8.6", for a machine that is not this one."""

from __future__ import annotations

import re

from vllm_safe.common.errors import Misuse
from vllm_safe.common.sizes import GIB, MIB, parse_size
from vllm_safe.plan.serving import Card

_GROUP = re.compile(
    r"(?:(?P<count>\d{1,2})\s*[x\u00d7*]\s*)?(?P<size>\d+(?:\.\d+)?\s*[GM]i?B?)(?:\s+sm[_ ]?(?P<major>\d{1,2})\.?(?P<minor>\d))?",
    re.ASCII | re.IGNORECASE,
)
_EXAMPLE = "Such as '8 x 12GiB sm8.6' or '1 x 24GiB sm8.9, 2 x 12GiB sm8.6': number, memory and compute capability of each kind."
_CAPABILITIES = "Add it, such as sm7.5 (RTX 20x0), sm8.6 (RTX 30x0), sm8.9 (RTX 40x0) or sm12.0 (RTX 50x0)."
_OLDEST, _NEWEST = 3, 19  # major
_LEAST, _MOST = 1 * GIB, 1024 * GIB
# The part of the nominal memory of a GPU that the driver keeps for itself. nvidia-smi shows 12288 MiB, of which CUDA has 12042; 24576 and
# 24258; 81559 and 81154. A size that is not a whole number of GiB counts as the size that CUDA has.
_KEPT_PART, _KEPT_MOST = 0.02, 384 * MIB


def parse_gpus(text: str) -> tuple[Card, ...]:
    """Return the GPUs that a text describes, in its order. Raises Misuse."""
    cards: list[Card] = []
    for part in text.split(","):
        match = _GROUP.fullmatch(part.strip())
        if not match:
            raise Misuse(f"--gpus: {part.strip()!r} does not describe GPUs", hint=_EXAMPLE)
        if match["major"] is None:
            raise Misuse(f"--gpus: the compute capability of {part.strip()!r} is missing", hint=_CAPABILITIES)
        if not _OLDEST <= int(match["major"]) <= _NEWEST:
            raise Misuse(f"--gpus: there is no compute capability {match['major']}.{match['minor']}", hint=_CAPABILITIES)
        size = parse_size(match["size"])
        if not _LEAST <= size <= _MOST:
            raise Misuse(f"--gpus: {match['size']} cannot be the memory of a GPU", hint=_EXAMPLE)
        usable = size - min(int(size * _KEPT_PART), _KEPT_MOST) if size % GIB == 0 else size
        cards += [Card(usable, (int(match["major"]), int(match["minor"])))] * int(match["count"] or 1)
    if not cards:
        raise Misuse("--gpus: 0 GPUs are described", hint=_EXAMPLE)
    return tuple(cards)
