"""The rows of the benchmarks of loads: what they say is missed."""

from __future__ import annotations

import pytest

from tests.bench.foretold import compare_load
from tests.bench.loading import DISK, LOADS, RING, VLLM, Cell, Load, rows

MIB = 1 << 20


def cells(seconds: dict[Load, float], *, read: float = 1.0) -> list[Cell]:
    """Return a cell for each load: the disk alone takes 10 s, ours 11 s, vLLM's own 50 s, and 5 s where nothing holds them back."""
    usual = {DISK: 10.0, RING: 11.0, VLLM: 50.0}
    return [
        Cell(load, seconds.get(load, usual[load.way] if load.disk else 5.0), int(read * 1000 * MIB), 1000 * MIB, 1000, 100 * MIB)
        for load in LOADS
    ]


@pytest.mark.parametrize(
    ("seconds", "read", "missed"),
    [
        ({}, 1.0, []),
        ({Load(RING, 150, "1/8"): 12.0}, 1.0, ["loading time, relative to the disk alone"]),
        ({Load(RING, 600, "2", "bf16"): 12.0, Load(DISK, 600, "2"): 9.0}, 1.0, ["loading time, relative to the disk alone"]),
        ({Load(RING, 0, "2", "bf16"): 6.0}, 1.0, ["loading time from a fast disk, relative to vLLM's own loader"]),
        ({Load(RING, 0, "3", "gptq", "cached"): 6.0}, 1.0, ["loading time from the page cache, relative to vLLM's own loader"]),
        ({Load(RING, 0, "3", "bf16", "own"): 6.0}, 1.0, ["loading time from this machine's own disk, relative to vLLM's own loader"]),
        ({}, 1.1, ["bytes read while loading, relative to the files"]),
    ],
)
def test_the_worst_of_all_counts(seconds: dict[Load, float], read: float, missed: list[str]) -> None:
    assert [row.what for row in rows(cells(seconds, read=read)) if not row.met] == missed


@pytest.mark.parametrize(("took", "met"), [(7.9, False), (8.1, True), (10.0, True), (11.9, True), (12.1, False)])
def test_a_load_may_take_a_fifth_more_or_less_than_foretold(took: float, *, met: bool) -> None:
    assert compare_load(took, 10.0, "").met == met
