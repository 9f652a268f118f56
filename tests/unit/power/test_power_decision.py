"""The power limits of GPUs that follow from the setting, and what is wrong with one."""

from __future__ import annotations

from types import MappingProxyType

import pytest

from vllm_safe.config.power_types import EVERY_CARD, PowerCap
from vllm_safe.config.settings import Config, GpuSection
from vllm_safe.power.power_decision import asked_power, decide_power, describe_power, named_as, title_cards
from vllm_safe.power.power_facts import PowerCard

SMALL = PowerCard(0, "GPU-a", "0000:01:00.0", "RTX 3060", limit=170000, default=170000, least=100000, most=200000)
LARGE = PowerCard(1, "GPU-b", "0001:0a:00.0", "RTX 3090", limit=350000, default=350000, least=100000, most=366000)
FIXED = PowerCard(2, "GPU-c", "0000:03:00.0", "RTX 3060 Laptop GPU")
PERCENT = PowerCap(75, is_percent=True)
WATTS = PowerCap(150, is_percent=False)


def with_limits(**caps: PowerCap) -> Config:
    return Config(gpu=GpuSection(MappingProxyType(caps)))


def test_without_the_setting_nothing_is_limited() -> None:
    assert decide_power(Config(), (SMALL, LARGE)).limits == {}
    assert asked_power(Config()) == ""


def test_a_share_is_of_the_default_of_each_card() -> None:
    plan = decide_power(with_limits(all=PERCENT), (SMALL, LARGE))
    assert (plan.limits, plan.problems) == ({"GPU-a": 127500, "GPU-b": 262500}, ())
    assert describe_power(plan, (SMALL, LARGE)) == "127.5 W of 170 W for GPU 0 (RTX 3060); 262.5 W of 350 W for GPU 1 (RTX 3090)"
    assert asked_power(with_limits(all=PERCENT)) == "75%"


@pytest.mark.parametrize("name", ["1", "GPU-b", "gpu-B", "0001:0a:00.0", "00000001:0A:00.0", "0001:0a:00"])
def test_a_card_has_every_name_that_nvidia_smi_takes(name: str) -> None:
    config = with_limits(**{name: WATTS})
    assert decide_power(config, (SMALL, LARGE)).limits == {"GPU-b": 150000}
    assert [named_as(config, card) for card in (SMALL, LARGE)] == ["", name]
    assert asked_power(config) == f"{{{name}: 150W}}"


def test_an_address_without_a_domain_is_that_of_domain_0() -> None:
    assert decide_power(with_limits(**{"01:00.0": WATTS}), (SMALL, LARGE)).limits == {"GPU-a": 150000}


@pytest.mark.parametrize(
    ("caps", "words"),
    [
        ({EVERY_CARD: PowerCap(50, is_percent=False)}, "GPU 0 (RTX 3060), GPU 1 (RTX 3090): gpu.power_limit 50 W is out of range; exp"),
        (
            {"0": PowerCap(30, is_percent=True)},
            "GPU 0 (RTX 3060): gpu.power_limit 30% of 170 W, which is 51 W, is out of range; expected 100 W",
        ),
        ({"0": PowerCap(201, is_percent=False)}, "expected 100 W to 200 W"),
        ({"1": PowerCap(99.9, is_percent=False)}, "99.9 W is out of range; expected 100 W to 366 W"),
        ({"7": WATTS}, "gpu.power_limit names 7, but there is no such GPU: the driver has 2, numbered from 0"),
        ({"1": WATTS, "GPU-b": WATTS}, "gpu.power_limit names GPU 1 (RTX 3090) twice, the second time as GPU-b"),
    ],
)
def test_what_a_card_does_not_accept_is_said_with_what_it_does(caps: dict[str, PowerCap], words: str) -> None:
    large = LARGE if "1" in caps else PowerCard(**{**vars(LARGE), "most": 200000})
    (problem,) = decide_power(with_limits(**caps), (SMALL, large)).problems
    assert words in problem


def test_the_ends_of_the_range_are_accepted() -> None:
    for watts in (100, 200):
        assert decide_power(with_limits(all=PowerCap(watts, is_percent=False)), (SMALL,)).problems == ()


def test_a_card_whose_limit_is_fixed_has_none() -> None:
    (problem,) = decide_power(with_limits(all=PERCENT), (SMALL, FIXED)).problems
    assert problem.startswith("GPU 2 (RTX 3060 Laptop GPU): no power limit can be set; gpu.power_limit can name only the others")
    assert decide_power(with_limits(**{"0": PERCENT}), (SMALL, FIXED)).problems == ()


def test_where_there_is_no_card_a_named_one_is_missed() -> None:
    assert decide_power(with_limits(all=PERCENT), ()).problems == (
        "gpu.power_limit names all, but there is no such GPU: the driver has none",
    )


def test_cards_of_one_kind_are_named_together() -> None:
    cards = [PowerCard(number, f"GPU-{number}", "", "RTX 3060") for number in range(3)]
    assert title_cards(cards) == "GPUs 0-2 (RTX 3060)"
    assert title_cards([PowerCard(3, "GPU-d", "")]) == "GPU 3"
