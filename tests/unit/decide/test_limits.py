"""Limits in bytes, the bound that decided, and the limits that all models share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vllm_safe.common.kernfs import MODELS_SLICE
from vllm_safe.common.sizes import GIB, MIB, TIB, Amount
from vllm_safe.config.settings import Config, Limits, Model, ModelLimits, Position, Protect
from vllm_safe.decide.limits import PROPERTIES, decide_budget, unit_of
from vllm_safe.decide.protect import AUTO, KERNEL, UNITS, decide_protection
from vllm_safe.host.host_facts import Host, SwapArea

PLAN = Host(memory=int(15.6 * GIB), gpus=8, swaps=(SwapArea("/swapfile", "file", 128 * GIB, 0),), cgroup2=True, kept_free=99 * MIB)


def config_of(own: ModelLimits | None = None, **sections: object) -> Config:
    models = {"x": Model(model="a/b", limits=own or ModelLimits())}
    return replace(Config(models=models), **sections)  # type: ignore[arg-type]  # the sections have these names


def test_on_the_plans_machine_the_reserve_wins_over_90_percent() -> None:
    limits = decide_budget(config_of(), PLAN).of("x")
    assert limits.memory_max.value == pytest.approx(11.6 * GIB, rel=0.01)
    kernel = decide_protection(config_of(), PLAN).kernel
    assert (kernel.value, kernel.origin.note) == (
        (384 + 99) * MIB,
        "auto: 3 % of RAM, at most 384M, plus 99.0 MiB that the kernel keeps free",
    )
    assert "483 MiB for the kernel (protect.kernel)" in limits.memory_max.origin.note
    assert limits.memory_max.value + decide_protection(config_of(), PLAN).total == pytest.approx(PLAN.memory, abs=4096)
    assert limits.memory_max.origin.source == "this machine"
    assert "8 GPUs" in limits.memory_max.origin.note
    assert "14.0 GiB" in limits.memory_max.origin.note


def test_swap_is_a_share_of_swap_and_not_of_ram() -> None:
    swap = decide_budget(config_of(), PLAN).of("x").swap_max
    assert swap.value == pytest.approx(0.9 * 128 * GIB, abs=4096)
    assert swap.origin.source == "default"


def test_with_ram_to_spare_what_was_asked_for_wins() -> None:
    big = replace(PLAN, memory=512 * GIB)
    limit = decide_budget(config_of(), big).of("x").memory_max
    assert limit.value == pytest.approx(0.9 * 512 * GIB, abs=4096)
    assert limit.origin.source == "default"


def test_limits_are_whole_pages_so_that_the_kernel_has_what_systemctl_shows() -> None:
    host = replace(PLAN, memory=PLAN.memory + 1234, swaps=(SwapArea("/s", "file", 1000 * 4096, 0),))
    limits = decide_budget(config_of(), host).of("x")
    assert limits.memory_max.value % 4096 == limits.swap_max.value % 4096 == 0


def test_a_models_own_limits_go_before_the_sections() -> None:
    config = config_of(ModelLimits(memory_max=Amount(2 * GIB), cpu_weight=50), limits=Limits(memory_max=Amount(1 * GIB), io_weight=7))
    config = replace(
        config, positions={"models.x.limits.memory_max": Position("c.yaml", 9, 1), "limits.io_weight": Position("c.yaml", 3, 1)}
    )
    limits = decide_budget(config, PLAN).of("x")
    assert (limits.memory_max.value, str(limits.memory_max.origin)) == (2 * GIB, "c.yaml:9")
    assert (limits.io_weight.value, str(limits.io_weight.origin)) == (7, "c.yaml:3")
    assert limits.cpu_weight.value == 50


def test_a_size_of_swap_is_capped_at_what_is_on() -> None:
    limits = decide_budget(config_of(ModelLimits(swap_max=Amount(1 * TIB))), PLAN).of("x")
    assert limits.swap_max.value == 128 * GIB
    assert limits.swap_max.origin.source == "this machine"


def test_without_swap_a_model_has_none() -> None:
    assert decide_budget(config_of(), replace(PLAN, swaps=())).of("x").swap_max.value == 0


def test_two_models_share_the_largest_cap_instead_of_adding_theirs() -> None:
    models = {
        "a": Model(model="a/a", limits=ModelLimits(memory_max=Amount(4 * GIB), swap_max=Amount(50, is_percent=True), cpu_weight=30)),
        "b": Model(model="b/b", limits=ModelLimits(memory_max=Amount(6 * GIB), swap_max=Amount(20, is_percent=True))),
    }
    shared = decide_budget(Config(models=models), PLAN).units[MODELS_SLICE]
    assert shared == {"MemoryMax": 6 * GIB, "MemorySwapMax": 64 * GIB, "CPUWeight": 30, "IOWeight": 1}


def test_without_any_model_the_section_limits_holds_for_the_slice() -> None:
    assert decide_budget(Config(), PLAN).units[MODELS_SLICE]["MemoryMax"] == decide_budget(config_of(), PLAN).of("x").memory_max.value


def test_a_reserve_larger_than_the_machine_leaves_nothing_rather_than_less() -> None:
    config = config_of(protect=Protect(system=Amount(100, is_percent=True)))
    assert decide_budget(config, PLAN).of("x").memory_max.value == 0


def test_auto_is_a_share_on_small_machines_and_its_bound_on_large_ones() -> None:
    small, large = (decide_protection(config_of(), replace(PLAN, memory=memory)).units for memory in (GIB, TIB))
    assert [small[key].value // MIB for key in UNITS] == [153, 61, 20]
    assert [large[key].value for key in UNITS] == [share.most for share in AUTO.values()]


def test_the_documentation_of_protect_has_the_numbers_of_auto() -> None:
    text = Path(__file__).parents[3].joinpath("vllm_safe/config/settings.py").read_text()
    for share in (*AUTO.values(), KERNEL):
        assert f"{share.percent} % of RAM, at most {share.most // MIB}M" in text


def test_everything_that_is_set_can_be_taken_back() -> None:
    config = config_of()
    every = {unit_of("*"): decide_budget(config, PLAN).of("x").properties, **decide_budget(config, PLAN).units}
    assert {unit: set(names) for unit, names in PROPERTIES.items()} == {unit: set(properties) for unit, properties in every.items()}


def test_each_unit_of_the_system_has_a_share_that_others_do_not_count_against() -> None:
    kept = decide_protection(config_of(), PLAN)
    assert kept.each_unit.value == kept.units["system"].value // 10 // 4096 * 4096
    assert decide_protection(config_of(protect=Protect(system=Amount(150 * MIB))), PLAN).each_unit.value == 15 * MIB
    asked = decide_protection(config_of(protect=Protect(each_unit=Amount(9 * MIB))), PLAN)
    assert asked.each_unit.value == 9 * MIB
    assert asked.total == kept.total  # it is a part of what is protected anyway
    units = decide_budget(config_of(protect=Protect(each_unit=Amount(9 * MIB))), PLAN).units
    assert [units[unit].get("DefaultMemoryMin") for unit in UNITS.values()] == [9 * MIB, 9 * MIB, None]


def test_the_kernels_share_may_be_set_and_is_small_on_a_small_machine() -> None:
    asked = decide_protection(config_of(protect=Protect(kernel=Amount(5 * MIB))), PLAN).kernel
    assert (asked.value, asked.origin.note) == (5 * MIB, "5M")
    small = decide_protection(config_of(), Host(memory=GIB)).kernel
    assert small.value == pytest.approx(GIB * 3 // 100, abs=4096)
    assert small.origin.note == "auto: 3 % of RAM, at most 384M"
