"""The values that kernel tunables get while a model runs."""

from __future__ import annotations

import pytest

from vllm_safe.config.settings import Config, Tunables
from vllm_safe.tunables.tunable_decision import decide_tunables
from vllm_safe.tunables.tunable_facts import LRU_GEN


@pytest.mark.parametrize(("now", "then"), [("0x0000", "y"), ("0x0007", "0x0007"), ("0x0006", "y"), ("many", "y")])
def test_the_lru_is_switched_on_where_it_is_not(now: str, then: str) -> None:
    assert decide_tunables(Config(), {LRU_GEN: now}) == {LRU_GEN: then}


def test_nothing_is_asked_of_a_kernel_that_has_none() -> None:
    assert decide_tunables(Config(), {}) == {}


def test_it_can_be_left_alone() -> None:
    assert decide_tunables(Config(tunables=Tunables(lru_gen=False)), {LRU_GEN: "0x0000"}) == {LRU_GEN: "0x0000"}
