"""Scenario of `vllm-safe check`: what it says of the GPUs is what nvidia-smi says, and it sees who has taken one."""

from __future__ import annotations

import json
import time

from tests.gpu.box import MIB, Box, Figures, Wrong, run
from tests.gpu.ends import filled

_FIELDS = "index,name,compute_cap,pcie.link.width.current,power.limit,power.default_limit,temperature.gpu"


def examined(box: Box) -> Figures:
    """Check a machine with a GPU that another program fills, and again with a model that runs there."""
    with filled(0, 2048 * MIB):
        rows, seconds = _check()
        _expect(rows, "fail", "examined asks for 92 % of each GPU, but ")
        taken = _expect(rows, "warn", "GPU 0: ", "used by")
    for line in run(f"nvidia-smi --query-gpu={_FIELDS} --format=csv,noheader,nounits").splitlines():
        _, name, capability, lanes, limit, default, _ = (field.strip() for field in line.split(","))
        _expect(rows, "pass", f"{name}, compute capability {capability}", f"PCIe x{lanes} ")
        _expect(rows, "pass", f"at most {float(limit):.0f} W, {float(limit) / float(default):.0%} of the default".replace("%", " %"))
    box.must_start("examined")
    own, _ = _check()
    used = [row["what"] for row in own if "used by" in row["what"]]  # in a container, NVML may name processes that are not seen there
    box.stop("examined")
    shown = [row["what"] for row in rows if row["what"].startswith(("NVIDIA driver", "GPU", "power", "temperature", "examined"))]
    return {"seconds of check": round(seconds, 1), "taken by": taken, "its own": used, "lines": shown}


def _check() -> tuple[list[dict[str, str]], float]:
    """Return all rows of check, and how long it took."""
    began = time.monotonic()
    found = json.loads(run(["vllm-safe", "check", "--json"], check=False))
    return [row for rows in found.values() for row in rows], time.monotonic() - began


def _expect(rows: list[dict[str, str]], level: str, *words: str) -> str:
    """Return the row of that level with all of the words. Raises Wrong if there is none."""
    for row in rows:
        if row["level"] == level and all(word in row["what"] for word in words):
            return row["what"]
    raise Wrong(f"check says nowhere, as {level}: {' ... '.join(words)}; it says: {[row['what'] for row in rows]}")
