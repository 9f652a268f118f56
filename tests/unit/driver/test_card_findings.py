"""Findings on single cards, in the cases that no machine of tests/golden/check has."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from vllm_safe.common.sizes import GIB, MIB
from vllm_safe.driver.card_facts import CardPair, CardProcess, NvmlCard, PciCard
from vllm_safe.driver.card_findings import check_each_card, name_cards
from vllm_safe.driver.driver_facts import Driver, Nvml

CARD = NvmlCard("A100", (8, 0), pci="0000:01:00.0", memory=40 * GIB, ecc=True, ecc_after_reboot=True, persistence=True, temperature=40)
BUS = (PciCard("0000:01:00.0", "nvidia", 16, 16, 16), PciCard("0000:02:00.0", "nvidia", 16, 16, 16))


def driver(*cards: NvmlCard, pairs: tuple[CardPair, ...] = (), bus: tuple[PciCard, ...] = BUS) -> Driver:
    modules = frozenset({"nvidia", "nvidia_uvm"})
    return Driver(pci=bus, loaded="580", modules=modules, nvml=Nvml(0, driver="580", cuda=(13, 0), cards=cards, pairs=pairs))


def found(of: Driver) -> dict[str, str]:
    return {finding.what: str(finding.level) for finding in check_each_card(of)}


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ([3], "GPU 3"),
        ([0, 2], "GPUs 0 and 2"),
        ([1, 0], "GPUs 0 and 1"),
        ([0, 1, 2], "GPUs 0-2"),
        ([0, 1, 3], "GPUs 0, 1 and 3"),
    ],
)
def test_names_of_cards(numbers: list[int], words: str) -> None:
    assert name_cards(numbers) == words


def test_a_card_in_order_has_no_warning() -> None:
    assert set(found(driver(CARD)).values()) == {"pass"}


def test_a_driver_that_does_not_answer_hides_the_cards_and_that_is_said() -> None:
    assert found(Driver(pci=BUS)) == {"the GPUs themselves are not examined, as their driver does not answer": "pass"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"spares_exhausted": True}, "no spare rows are left"),
        ({"uncorrected": 1}, "1 error of the memory that ECC could not correct"),
        ({"uncorrected": 7}, "7 errors of the memory"),
        ({"slowed_by": 0x80}, "slowed down at 40 °C by the power supply"),
        ({"slowed_by": 0x08}, "by heat or power"),
        ({"temperature": 85, "slowdown_temperature": 89}, "is hot: 85 °C, and it slows itself down at 89 °C"),
        ({"used": 3 * GIB}, "3.0 GiB of its memory are used by processes that cannot be seen"),
        ({"processes": (CardProcess(7),)}, "memory used by a process that cannot be seen from here (pid 7)"),
        ({"processes": (CardProcess(7, MIB, "docker", "docker-1.scope"),)}, "docker (pid 7) of docker-1.scope"),
        ({"display": True}, "drives a screen"),
    ],
)
def test_each_trouble_is_a_warning(changes: dict[str, Any], words: str) -> None:
    warned = [what for what, level in found(driver(replace(CARD, **changes))).items() if level == "warn"]
    assert (len(warned), words in warned[0]) == (1, True), warned


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"replaced": 4}, "4 parts of the memory were replaced for good"),
        ({"slowed_by": 0x05, "slowdown_temperature": 89}, "nothing slows them now"),  # idle, and at its power limit
        ({"temperature": None}, "temperature: the driver tells none"),
        ({"used": 200 * MIB}, "no process uses a GPU"),  # what an idle card keeps
        ({"processes": (CardProcess(7, GIB, "python3", "vllm@a.service"),)}, "python3 (pid 7) of vllm@a.service"),
        ({"power_limit": 300_000}, "GPU 0 at most 300 W"),
    ],
)
def test_what_is_no_trouble(changes: dict[str, Any], words: str) -> None:
    lines = found(driver(replace(CARD, **changes)))
    assert any(words in what for what in lines), lines
    assert set(lines.values()) == {"pass"}


@pytest.mark.parametrize(
    ("process", "way_out"),
    [
        (CardProcess(7, MIB, "ollama", "ollama.service"), "To have it for a model: systemctl stop ollama.service"),
        (CardProcess(7, MIB, "docker", "docker-1.scope"), "To have it for a model: end it (kill 7)"),
        (CardProcess(7, MIB, "Xorg"), "To have it for a model: end it (kill 7)"),
    ],
)
def test_how_to_have_a_card_back(process: CardProcess, way_out: str) -> None:
    lines = [finding.do_next for finding in check_each_card(driver(replace(CARD, processes=(process,)))) if finding.do_next]
    assert lines == [way_out]


@pytest.mark.parametrize(
    ("now", "card", "slot", "words"),
    [
        (8, 16, 16, "x8, although GPU and slot have x16"),
        (4, 16, 8, "x4, although GPU and slot have x8"),
        (4, 16, 4, ""),  # the slot has no more
        (4, 4, 16, ""),  # the card has no more
        (0, 16, 16, ""),  # it fell off the bus: other findings say so
        (4, 0, 0, ""),
    ],
)
def test_the_width_of_a_link_is_measured_against_card_and_slot(now: int, card: int, slot: int, words: str) -> None:
    warned = [
        what for what, level in found(driver(CARD, bus=(PciCard("0000:01:00.0", "nvidia", now, card, slot),))).items() if level == "warn"
    ]
    assert [words in what for what in warned] == ([True] if words else [])


def test_the_iommu_matters_only_to_peers_over_pcie() -> None:
    behind = tuple(replace(card, translated=True) for card in BUS)
    two = (CARD, replace(CARD, pci="0000:02:00.0"))
    over_pcie = found(driver(*two, pairs=(CardPair(0, 1, 0),), bus=behind))
    assert [what for what, level in over_pcie.items() if level == "warn"] == [
        "GPUs 0 and 1: the IOMMU translates their transfers, with which peer-to-peer over PCIe is slow or hangs"
    ]
    for pair in (CardPair(0, 1, 0, nvlink=True), CardPair(0, 1, 2)):
        assert set(found(driver(*two, pairs=(pair,), bus=behind)).values()) == {"pass"}


def test_some_pairs_that_reach_each_other() -> None:
    pairs = (CardPair(0, 1, 0, nvlink=True), CardPair(0, 2, 3), CardPair(1, 2, 0))
    cards = [replace(CARD, pci=f"0000:0{number}:00.0") for number in (1, 2, 3)]
    lines = found(driver(*cards, pairs=pairs))
    assert "2 of 3 pairs of GPUs reach each other's memory (peer-to-peer), 1 over NVLink, the others over PCIe: NCCL uses it" in lines


def test_cuda_needs_a_second_module() -> None:
    lines = found(replace(driver(CARD), modules=frozenset({"nvidia"})))
    assert [what for what, level in lines.items() if level == "warn"] == [
        "the kernel module nvidia-uvm is not loaded, without which CUDA does not start"
    ]
