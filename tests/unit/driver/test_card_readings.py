"""Tests of the latest figures of all GPUs, with programs that misbehave in place of the one that asks NVML."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from vllm_safe.driver.card_facts import CardProcess, NvmlCard
from vllm_safe.driver.card_readings import CardFeed, CardReading

LINE = '{"cards": [{"facts": {"name": "n", "capability": [8, 6], "pci": "0000:0a:00.0", "temperature": 71, "processes": [[7, 2]]}, '
LINE += '"busy": 97, "draw": 138400}, {"facts": {"name": "", "capability": [0, 0]}}]}'


@pytest.fixture
def feed(tmp_path: Path) -> Iterator[Callable[[str], CardFeed]]:
    """Start a feed whose program is a text of Python."""
    feeds: list[CardFeed] = []

    def start(program: str) -> CardFeed:
        feeds.append(CardFeed((sys.executable, "-I", "-c", f"import time\n{program}"), tmp_path))
        return feeds[-1]

    yield start
    for each in feeds:
        each.close()


def test_the_figures_are_taken_over(feed: Callable[[str], CardFeed], tmp_path: Path) -> None:
    device = tmp_path / "sys/bus/pci/devices/0000:0a:00.0"
    device.mkdir(parents=True)
    (device / "current_link_width").write_text("1\n")
    (device / "max_link_width").write_text("16\n")
    (tmp_path / "proc/7").mkdir(parents=True)
    (tmp_path / "proc/7/cgroup").write_text("0::/vllm.slice/vllm@x.service\n")
    card, lost = feed(f"print({LINE!r}, flush=True); time.sleep(60)").latest(30).cards
    process = CardProcess(7, 2, unit="vllm@x.service")
    facts = NvmlCard("n", (8, 6), pci="0000:0a:00.0", temperature=71, processes=(process,))
    assert card == CardReading(facts, busy=0.97, draw=138.4, lanes=1, most_lanes=16)
    assert lost == CardReading(NvmlCard("", (0, 0)))
    assert (card.responds, lost.responds) == (True, False)


def test_the_last_whole_line_counts(feed: Callable[[str], CardFeed]) -> None:
    program = f"print({LINE!r}); print({LINE!r}.replace('71', '72')); print('{{torn', end='', flush=True); time.sleep(60)"
    assert feed(program).latest(30).cards[0].card.temperature == 72


def test_a_driver_that_hangs_is_not_waited_for(feed: Callable[[str], CardFeed]) -> None:
    silent = feed("time.sleep(60)")
    begun = time.monotonic()
    assert not silent.latest(0.2).answered
    assert time.monotonic() - begun < 20


def test_figures_grow_old_if_no_more_come(feed: Callable[[str], CardFeed]) -> None:
    ended = feed(f"print({LINE!r})")
    first = ended.latest(30)
    time.sleep(0.05)
    assert ended.latest().age >= first.age + 0.05
    assert ended.latest().cards == first.cards


def test_a_program_that_crashed_is_a_problem_and_nonsense_is_no_card(feed: Callable[[str], CardFeed]) -> None:
    assert "without an answer" in feed("raise SystemExit(3)").latest(30).problem
    assert feed("print('[1, 2'); time.sleep(60)").latest(1).cards == ()
    assert "no sensible answer" in feed("""print('{"cards": [{"facts": {"name": 1}}]}')""").latest(30).problem


def test_a_problem_is_told_with_its_hint(feed: Callable[[str], CardFeed]) -> None:
    reading = feed("""print('{"problem": "p", "hint": "h"}')""").latest(30)
    assert (reading.problem, reading.hint) == ("p", "h")


def test_the_program_ends_with_its_reader() -> None:
    with closing(CardFeed((sys.executable, "-I", "-c", "import time; time.sleep(60)"))) as feed:
        child = feed._child
    assert child.poll() is not None
