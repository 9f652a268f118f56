"""Evidence from the recorded figures of GPUs: heat and power that slowed them, and links that became narrower."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from vllm_safe.common.sizes import format_span
from vllm_safe.contract.recorded_run import Gpu
from vllm_safe.diagnose.verdict import MOMENTS, Case, Evidence

_WINDOW = 60.0  # seconds before the end
_LEAST = 0.1  # share of them: less is a spike
# Field of Gpu -> what it says of a card.
_SLOWED = {
    "heat": "throttled by heat",
    "braked": "slowed by the power supply or its own protection (power brake, hardware slowdown)",
}


class _Slowed(NamedTuple):
    """A card that was slowed. share: of the last minute."""

    number: int
    share: float
    hottest: int | None


def slowed_cards(case: Case) -> list[Evidence]:
    """Return which cards were slowed in the last minute before the end, for how much of it, and how hot they were."""
    found = []
    seconds, readings = _last_minute(case)
    for field, what in _SLOWED.items():
        slowed = [card for number in range(_count(readings)) if (card := _slowed(number, field, readings)).share >= _LEAST]
        if slowed:
            hot = max((card.hottest for card in slowed if card.hottest is not None), default=None)
            shares = sorted({f"{100 * card.share:.0f}" for card in slowed}, key=int)
            share = f"{shares[0]} %" if len(shares) == 1 else f"{shares[0]} to {shares[-1]} %"
            last = "minute" if seconds > _WINDOW - MOMENTS else format_span(seconds)
            heat = "" if hot is None else f", at up to {hot} °C"
            found.append(Evidence(case.over_at, f"{_named(slowed)} {what} for {share} of the last {last}{heat}"))
    return found


def narrowed_links(case: Case) -> list[Evidence]:
    """Return the cards whose PCIe link had fewer lanes at last than before: a riser or a slot that fails."""
    found = []
    for number in range(_count([(0.0, sample.gpus) for sample in case.run.samples])):
        widths = [(sample.time, lanes) for sample in case.run.samples if number < len(sample.gpus) and (lanes := sample.gpus[number].lanes)]
        most = max((lanes for _, lanes in widths), default=0)
        if widths and widths[-1][1] < most:
            since = next(time for time, lanes in widths if time > max(at for at, width in widths if width == most))
            found.append(Evidence(since, f"the PCIe link of GPU {number} went from x{most} to x{widths[-1][1]}"))
    return found


def drawn_power(case: Case) -> list[Evidence]:
    """Return what all cards drew at the last record, for an end that the power supply may have caused."""
    known = [gpu.power for gpu in case.last.gpus if gpu.power is not None]
    hot = max((gpu.temperature for gpu in case.last.gpus if gpu.temperature is not None), default=None)
    if not known:
        return []
    cards = f"{len(known)} GPUs drew {sum(known):.0f} W together" if len(known) > 1 else f"the GPU drew {known[0]:.0f} W"
    return [Evidence(case.last.time, f"{cards} at the last record" + ("" if hot is None else f", at up to {hot} °C"))]


def _last_minute(case: Case) -> tuple[float, list[tuple[float, tuple[Gpu, ...]]]]:
    """Return how long the samples of the last minute are, and for each its seconds and its GPUs."""
    samples = sorted(case.run.samples, key=lambda sample: sample.time)
    spans = [
        (min(after.time - before.time, MOMENTS), after.gpus)
        for before, after in pairwise(samples)
        if after.gpus and case.over_at - _WINDOW < after.time <= case.over_at
    ]
    return sum(seconds for seconds, _ in spans), spans


def _slowed(number: int, field: str, readings: Iterable[tuple[float, tuple[Gpu, ...]]]) -> _Slowed:
    own = [(seconds, gpus[number]) for seconds, gpus in readings if number < len(gpus)]
    known = [(seconds, share) for seconds, gpu in own if (share := getattr(gpu, field)) is not None]
    whole = sum(seconds for seconds, _ in known)
    hottest = max((gpu.temperature for _, gpu in own if gpu.temperature is not None), default=None)
    return _Slowed(number, sum(seconds * share for seconds, share in known) / whole if whole else 0.0, hottest)


def _count(readings: Iterable[tuple[float, tuple[Gpu, ...]]]) -> int:
    return max((len(gpus) for _, gpus in readings), default=0)


def _named(cards: list[_Slowed]) -> str:
    *first, last = (str(card.number) for card in cards)
    return f"GPUs {', '.join(first)} and {last} were" if first else f"GPU {last} was"
