"""The figures of GPUs that the recorder reads from NVML, by ctypes, with a libnvidia-ml.so of our own."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.builders.fake_nvml import build_fake_nvml, load_fake_nvml, tell_cards
from vllm_safe.contract.recorded_run import Gpu
from vllm_safe.record.nvml_usage import NvmlCards

GIB = 1 << 30
BUSY = "memory 12288 9216\nbusy 97\ndraw 168.4\ntemperature 71\nslowed 0x4\nlink 1 3"


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FAKE_NVML", str(tmp_path / "told"))
    return tmp_path / "told"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_fake_nvml(tmp_path_factory.mktemp("nvml"))


def test_every_figure_of_every_card_and_which_is_lost(told: Path, folder: Path) -> None:
    tell_cards(told, BUSY, "lost 1", "memory 11264 0\nlink none")
    cards = NvmlCards(load_fake_nvml(folder))
    assert cards.read() == (
        Gpu(9 * GIB, 12 * GIB, 0.97, 168.4, 71, 0.0, 1.0, 0.0, 1, 3),
        Gpu(0, 0, 0.0),
        Gpu(0, 11 * GIB, 0.0, heat=0.0, capped=0.0, braked=0.0),
    )
    assert cards.lost == {1}


@pytest.mark.parametrize(
    ("reasons", "shares"),
    [
        ("0x1", (0.0, 0.0, 0.0)),  # idle
        ("0x20", (1.0, 0.0, 0.0)),  # software thermal slowdown
        ("0x48", (1.0, 0.0, 0.0)),  # hardware thermal slowdown, beside the general bit of the hardware
        ("0x88", (0.0, 0.0, 1.0)),  # power brake
        ("0x8", (0.0, 0.0, 1.0)),  # an older card does not say which
        ("0x24", (1.0, 1.0, 0.0)),
    ],
)
def test_why_the_clocks_are_lower(told: Path, folder: Path, reasons: str, shares: tuple[float, float, float]) -> None:
    tell_cards(told, f"slowed {reasons}")
    (card,) = NvmlCards(load_fake_nvml(folder)).read()
    assert (card.heat, card.capped, card.braked) == shares


def test_an_older_library_lacks_figures_and_names_one_otherwise(told: Path, tmp_path: Path) -> None:
    tell_cards(told, BUSY)
    old = build_fake_nvml(tmp_path, without=("EventReasons", "Temperature"))
    (card,) = NvmlCards(load_fake_nvml(old)).read()
    assert (card.power, card.temperature, card.capped) == (168.4, None, 1.0)
    none = build_fake_nvml(tmp_path / "none", without=("Reasons", "PowerUsage", "Pcie"))
    (card,) = NvmlCards(load_fake_nvml(none)).read()
    assert card == Gpu(9 * GIB, 12 * GIB, 0.97, temperature=71)


def test_nobody_waits_for_the_cards(told: Path, folder: Path) -> None:
    tell_cards(told, BUSY)
    cards = NvmlCards(load_fake_nvml(folder))
    expected = cards.read()
    assert cards.ask(time.monotonic()) in {(), expected}
    until = time.monotonic() + 10
    while not (heard := cards.ask(time.monotonic())) and time.monotonic() < until:
        time.sleep(0.01)
    assert heard == expected
    assert cards.ask(time.monotonic() + 3600) == (), "what was heard an hour ago is not said again"


def test_a_driver_that_does_not_work_is_an_error(told: Path, folder: Path) -> None:
    told.write_text("error 9\n")
    with pytest.raises(OSError, match="error 9"):
        NvmlCards(load_fake_nvml(folder))
