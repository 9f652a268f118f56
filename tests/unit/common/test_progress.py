"""The progress of a long step on a terminal, and that nothing is drawn elsewhere."""

from __future__ import annotations

import io
import sys

import pytest

from vllm_safe.common import progress
from vllm_safe.common.progress import Progress


class Screen(io.StringIO):
    """A stderr that is a terminal."""

    def isatty(self) -> bool:
        """Return True, as a terminal does."""
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_bar_with_a_share_and_what_is_left(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    monkeypatch.setattr(sys, "stderr", screen := Screen())
    with Progress("writing /swapfile", 1000) as bar:
        clock[0] += 60
        bar.update(250)
        assert "[########......................] writing /swapfile: 25%, 3 min left" in screen.getvalue()
    assert screen.getvalue().endswith("\r\033[K")


def test_a_step_that_is_over_at_once_draws_nothing(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    monkeypatch.setattr(sys, "stderr", screen := Screen())
    with Progress("allocating", 10) as bar:
        clock[0] += 0.1
        bar.update(5)
    assert screen.getvalue() == ""


def test_nothing_is_drawn_into_a_file(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("writing", 0) as bar:
        clock[0] += 5
        bar.update(0)
    assert capsys.readouterr().err == ""


def test_shares_stay_between_nothing_and_all(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    statuses: list[str] = []
    monkeypatch.setattr(progress, "notify", lambda **fields: statuses.append(fields["STATUS"]))
    with Progress("turning off", 100) as bar:
        for done in (-50, 500):
            clock[0] += 1
            bar.update(done)
    assert statuses == ["turning off: 0%", "turning off: 100%"]
