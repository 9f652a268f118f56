"""The tiers of the system tests: what each selects, how many of its machines run at once, and which tiers wait for each other."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Tier:
    """A selection of tests that one pytest runs.

    arguments: what pytest is told. workers: how many test modules, each with machines of its own, run at once.
    lane: tiers of one lane run one after another; lanes run side by side. environment: variables added to pytest's own.
    """

    name: str
    arguments: tuple[str, ...]
    workers: int
    lane: str
    environment: dict[str, str] = field(default_factory=dict)


def _release(suite: str, lane: str, but: str = "", *more: str) -> Tier:
    # The real vLLM is that of bookworm's Python, and the beds have proven themselves on bookworm.
    selected = ("tests/system", "-m", f"nspawn and not engine{but}", "--ignore=tests/system/test_nspawn_bed.py")
    return Tier(suite, (*selected, *more), 3, lane, {"VLLM_SAFE_RELEASE": suite})


# Two machines of QEMU keep two processors busy. Containers mostly wait, so they run beside them. Both lanes take about as long.
TIERS = {
    tier.name: tier
    for tier in (
        Tier("vm", ("tests/system", "-m", "vm"), 2, "vm"),
        Tier("nspawn", ("tests/system", "-m", "not vm and not os_upgrade and not long"), 2, "nspawn"),
        # The gateway and the download of models have their tests on the oldest and the newest release; the sockets are tested on all.
        _release("trixie", "nspawn", "", "--ignore=tests/system/test_gateway.py", "--ignore=tests/system/test_fetch.py"),
        _release("sid", "vm", " and not os_upgrade"),
        Tier("nodes", ("tests/system", "-m", "long"), 1, "nspawn"),
    )
}


def command(tier: Tier) -> list[str]:
    """Return the command line that runs `tier` and reports each test on the descriptor that reports.DESCRIPTOR names."""
    return [
        *(sys.executable, "-m", "pytest", "-p", "tests.tiers.reports", "-o", f"cache_dir=.pytest_cache/{tier.name}"),
        # A module keeps its machines, and its order; the modules start in the order of the collection: the longest first.
        *(f"--numprocesses={tier.workers}", "--dist=loadfile", "--no-loadscope-reorder", *tier.arguments),
    ]


def lanes(tiers: Sequence[Tier]) -> list[list[Tier]]:
    """Return the tiers by lane, each lane in the order given."""
    names = dict.fromkeys(tier.lane for tier in tiers)
    return [[tier for tier in tiers if tier.lane == name] for name in names]
