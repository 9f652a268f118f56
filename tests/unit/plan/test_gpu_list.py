"""GPUs that are described in a text."""

from __future__ import annotations

import pytest

from vllm_safe.common.errors import Misuse
from vllm_safe.common.sizes import GIB, MIB
from vllm_safe.plan.gpu_list import parse_gpus
from vllm_safe.plan.serving import Card


@pytest.mark.parametrize("text", ["8 x 12GiB sm8.6", "8x12G sm86", " 8 * 12 GiB  sm_8.6", "8\u00d712GB SM8.6"])
def test_cards_that_are_alike(text: str) -> None:
    cards = parse_gpus(text)
    assert cards == (cards[0],) * 8
    assert cards[0].capability == (8, 6)


def test_cards_that_are_not_alike_keep_their_order() -> None:
    cards = parse_gpus("24GiB sm8.9, 2 x 12GiB sm8.6")
    assert [card.capability for card in cards] == [(8, 9), (8, 6), (8, 6)]
    assert cards[0].memory > cards[1].memory == cards[2].memory


@pytest.mark.parametrize(("sold", "usable"), [("12GiB", 12042), ("24GiB", 24258), ("80GiB", 81154)])
def test_the_driver_keeps_a_part_of_what_is_sold(sold: str, usable: int) -> None:
    """Figures of an RTX 3060, an RTX 3090 and an A100: what torch.cuda reports."""
    assert parse_gpus(f"{sold} sm8.0")[0].memory == pytest.approx(usable * MIB, rel=0.006)


def test_a_size_with_a_fraction_is_what_cuda_has() -> None:
    assert parse_gpus("1 x 139.8GiB sm9.0") == (Card(int(139.8 * GIB), (9, 0)),)


@pytest.mark.parametrize("text", ["", "8", "12GiB sm", "0 x 12GiB sm8.6", "12MiB sm8.6", "1 x 12GiBsm8.6", "2 x 99999GiB sm8.6", "a,b"])
def test_what_describes_no_cards(text: str) -> None:
    with pytest.raises(Misuse, match="--gpus") as caught:
        parse_gpus(text)
    assert "8 x 12GiB sm8.6" in caught.value.hint


@pytest.mark.parametrize(("text", "why"), [("8 x 12GiB", "of '8 x 12GiB' is missing"), ("1 x 12GiB sm12", "no compute capability 1.2")])
def test_a_compute_capability_that_cannot_be(text: str, why: str) -> None:
    with pytest.raises(Misuse, match=why) as caught:
        parse_gpus(text)
    assert "sm8.6 (RTX 30x0)" in caught.value.hint
