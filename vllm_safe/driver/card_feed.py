"""The answers of NVML about all cards, printed as a line of JSON each second, until nobody reads them.

It is the program of a separate process (__main__.py), as card_program.py is. It keeps one session with NVML, since the driver may need
seconds for each new one, and hold the cards awake meanwhile.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from typing import Any

import pynvml

from vllm_safe.driver.card_program import ask_card
from vllm_safe.driver.nvml_session import NvmlFailure, ask_nvml_or, nvml_cards, open_nvml

_EVERY = 1.0  # seconds


def feed() -> None:
    """Print `{"cards": [...]}` each second, or `{"problem": ...}` once if NVML cannot be used."""
    with suppress(BrokenPipeError):
        try:
            with open_nvml():
                while True:
                    _print({"cards": [_figures(handle) for _, handle in nvml_cards()]})
                    time.sleep(_EVERY)
        except NvmlFailure as failure:
            _print({"problem": failure.message, "hint": failure.hint})


def _figures(handle: Any) -> dict[str, Any]:  # noqa: ANN401 - pynvml has no types
    """Return the facts about one card, and what it does now: its share of busy time in percent, and its draw in mW."""
    figures = {"facts": ask_card(handle)}
    if handle is None:
        return figures
    busy, draw = (ask_nvml_or(None, call, handle) for call in (pynvml.nvmlDeviceGetUtilizationRates, pynvml.nvmlDeviceGetPowerUsage))
    return figures | ({"busy": busy.gpu} if busy else {}) | ({} if draw is None else {"draw": draw})


def _print(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()
