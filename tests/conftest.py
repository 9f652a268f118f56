"""Tiers of tests: what may be skipped on a machine that cannot run it, and what may not."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator

import pluggy
import pytest

# A shell ignores these for what it starts in the background, and nohup one more; the programs under test inherit that, and a Ctrl-C
# that a test sends would reach nobody.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

# Tiers whose tests must run, as .ci/run sets it: a skipped one fails. "unit", or the name of a marker: "nspawn", "vm".
REQUIRED = frozenset(os.environ.get("VLLM_SAFE_REQUIRE", "").split())


def tier_of(item: pytest.Item) -> str:
    """Return the bed that a test needs; "unit" if it needs none."""
    return next((marker for marker in ("vm", "nspawn") if item.get_closest_marker(marker)), "unit")


@pytest.hookimpl(hookwrapper=True)  # the way that bookworm's pytest knows too
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pluggy.Result[pytest.TestReport], None]:
    """Turn a skip in a required tier into a failure that gives the reason of the skip."""
    report = (yield).get_result()
    if report.skipped and not hasattr(report, "wasxfail") and tier_of(item) in REQUIRED:
        report.outcome = "failed"
        report.longrepr = f"tests of the tier {tier_of(item)!r} must run here (VLLM_SAFE_REQUIRE), but: {report.longrepr}"
