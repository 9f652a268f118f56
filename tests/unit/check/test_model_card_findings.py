"""Findings on a model and its cards, in the cases that no machine of tests/golden/check has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from tests.builders.situations import situation_of
from vllm_safe.check.model_card_findings import CardSituation, check_model_on_cards
from vllm_safe.check.model_needs import ModelNeeds
from vllm_safe.common.sizes import GIB
from vllm_safe.config.settings import Config, Engine, Model
from vllm_safe.driver.card_facts import CardPair, NvmlCard, PciCard
from vllm_safe.driver.driver_facts import Driver, Nvml
from vllm_safe.host.host_facts import Host
from vllm_safe.host.rig_facts import HardwareFacts
from vllm_safe.host.start_facts import StartFacts
from vllm_safe.models.model_files import ModelFiles

AMPERE = NvmlCard("A100", (8, 0), pci="0000:01:00.0", memory=40 * GIB)
TURING = replace(AMPERE, name="T4", capability=(7, 5))
BFLOAT16 = ModelNeeds("bfloat16", kind="llama")


def here(
    *cards: NvmlCard,
    needs: ModelNeeds = BFLOAT16,
    pairs: tuple[CardPair, ...] = (),
    engine: str = "vllm",
    bus: tuple[PciCard, ...] = (),
    cores: int = 64,
    **settings: Any,  # noqa: ANN401 - of a model
) -> CardSituation:
    model = Model(**({"model": "org/m", "args": MappingProxyType({"tensor-parallel-size": len(cards)})} | settings))
    config = Config(models=MappingProxyType({"m": model}), engine=Engine(package=engine))
    facts = StartFacts(server=True, model=ModelFiles(Path("/m"), present=True))
    at = situation_of(config, Host(memory=64 * GIB, gpus=len(cards)), "m", facts)
    driver = Driver(pci=bus, nvml=Nvml(0, driver="580", cuda=(13, 0), cards=cards, pairs=pairs))
    return CardSituation(at, driver, HardwareFacts(threads=cores, cores=cores), needs)


def found(situation: CardSituation) -> list[tuple[str, str, str]]:
    return [(str(finding.level), finding.what, finding.do_next) for finding in check_model_on_cards(situation)]


@pytest.mark.parametrize(
    ("cards", "needs", "level", "words", "do_next"),
    [
        ([AMPERE], BFLOAT16, "pass", "m needs bfloat16, which GPU 0 (8.0) can compute", ""),
        ([TURING], BFLOAT16, "warn", "vLLM computes in float16", "args.dtype: half"),
        ([TURING], replace(BFLOAT16, chosen=True), "fail", "vLLM would exit", "Set models.m.args.dtype: half"),
        ([AMPERE, TURING], BFLOAT16, "fail", "which GPU 1 (7.5) cannot: vLLM would exit", "Set models.m.args.dtype: half"),
        ([TURING], replace(BFLOAT16, kind="gemma3"), "warn", "vLLM computes in float32", "twice the memory"),
        ([TURING], replace(BFLOAT16, kind="gemma3", chosen=True), "fail", "vLLM would exit", "models.m.args.dtype: float32"),
        ([TURING], ModelNeeds("float16", quantisation="gptq"), "pass", "needs gptq and float16", ""),
        ([TURING], ModelNeeds(quantisation="mxfp4"), "fail", "mxfp4, which needs compute capability 8.0; too old: GPU 0 (7.5)", "`gpus`"),
        ([AMPERE], ModelNeeds(quantisation="fp8", float8=True), "pass", "they stay FP8 in memory", ""),
        ([replace(AMPERE, capability=(8, 9))], ModelNeeds(quantisation="fp8", float8=True), "pass", "m needs fp8, which GPU 0 (8.9)", ""),
        ([AMPERE], ModelNeeds(quantisation="secret"), "pass", "vllm-safe does not know which GPUs support it", ""),
        ([AMPERE], ModelNeeds(), "pass", "not known before its config.json is there", ""),
    ],
)
def test_what_the_cards_can_compute(cards: list[NvmlCard], needs: ModelNeeds, level: str, words: str, do_next: str) -> None:
    lines = found(here(*cards, needs=needs))
    assert (lines[0][0], words in lines[0][1], do_next in lines[0][2]) == (level, True, True), lines


@pytest.mark.parametrize(
    ("card", "args", "level", "do_next"),
    [
        (replace(AMPERE, used=3 * GIB), {}, "", ""),
        (replace(AMPERE, used=int(3.4 * GIB)), {}, "warn", "gpu-memory-utilization: 0.90"),  # 91.5 % are free, 92 % wanted
        (replace(AMPERE, used=20 * GIB), {}, "fail", "models.m.args.gpu-memory-utilization: 0.49"),
        (replace(AMPERE, used=20 * GIB), {"gpu-memory-utilization": 0.4}, "", ""),
        (replace(AMPERE, used=20 * GIB), {"gpu-memory-utilization": "a lot"}, "", ""),  # vLLM says that it is no number
    ],
)
def test_enough_of_each_card_must_be_free(card: NvmlCard, args: dict[str, Any], level: str, do_next: str) -> None:
    lines = [line for line in found(here(card, args=MappingProxyType(args))) if "asks for" in line[1]]
    assert ([line[0] for line in lines], all(do_next in line[2] for line in lines)) == ([level] if level else [], True), lines


def test_a_model_that_runs_has_its_memory_already() -> None:
    full = here(replace(AMPERE, used=36 * GIB))
    assert [line for line in found(full) if "asks for" in line[1]]
    assert not [line for line in found(replace(full, stopped=False)) if "asks for" in line[1]]


@pytest.mark.parametrize(
    ("pairs", "settings", "words"),
    [
        ((CardPair(0, 1, 0, nvlink=True),), {}, "m: NCCL goes from GPU to GPU, over NVLink"),
        ((CardPair(0, 1, 0),), {}, "m: NCCL goes from GPU to GPU, over PCIe"),
        ((CardPair(0, 1, 2),), {}, "m: NCCL goes through RAM between its GPUs; models.m.args.disable-custom-all-reduce: true saves"),
        ((CardPair(0, 1, 0),), {"env": MappingProxyType({"NCCL_P2P_DISABLE": "1"})}, "; without it, 1 of 1 pairs could reach each other"),
        ((CardPair(0, 1, 2),), {"profile": "pcie-riser"}, "since NCCL_P2P_DISABLE is 1 (profile pcie-riser)"),
    ],
)
def test_what_nccl_uses(pairs: tuple[CardPair, ...], settings: dict[str, Any], words: str) -> None:
    lines = [what for _, what, _ in found(here(AMPERE, replace(AMPERE, pci="0000:02:00.0"), pairs=pairs, **settings)) if "NCCL" in what]
    assert (len(lines), words in lines[0]) == (1, True), lines


def test_a_single_card_needs_no_nccl() -> None:
    assert not [line for line in found(here(AMPERE)) if "NCCL" in line[1]]


@pytest.mark.parametrize(
    ("lanes", "profile", "level"), [(1, "default", "warn"), (1, "pcie-riser", "pass"), (4, "default", ""), (0, "default", "")]
)
def test_narrow_links_want_the_profile_of_risers(lanes: int, profile: str, level: str) -> None:
    bus = (PciCard("0000:01:00.0", "nvidia", lanes),)
    lines = [line for line in found(here(AMPERE, AMPERE, bus=bus, profile=profile)) if "lanes" in line[1]]
    assert [line[0] for line in lines] == ([level] * bool(level))
    assert all("profile: pcie-riser" in line[2] for line in lines if level == "warn")


def test_only_the_cards_that_the_model_sees_count() -> None:
    lines = found(here(TURING, AMPERE, gpus=(1,), args=MappingProxyType({})))
    assert lines[0][:2] == ("pass", "m needs bfloat16, which GPU 1 (8.0) can compute")


def test_of_like_cards_as_many_count_as_it_is_split_over() -> None:
    full = replace(AMPERE, used=40 * GIB)
    assert not [line for line in found(here(AMPERE, full, args=MappingProxyType({}))) if line[0] != "pass"]
    unlike = replace(full, name="A40")  # which of them CUDA would take is not known
    assert [line[0] for line in found(here(AMPERE, unlike, args=MappingProxyType({}))) if line[0] != "pass"] == ["fail"]


def test_a_card_that_does_not_respond_matters_to_the_model_that_needs_it() -> None:
    lost = NvmlCard("", (0, 0))
    split = MappingProxyType({"tensor-parallel-size": 2})
    assert found(here(AMPERE, lost, args=split))[0][:2] == ("fail", "m is split over 2 GPUs, but GPU 1 does not respond")
    assert found(here(AMPERE, lost, lost, AMPERE, args=split, gpus=(0, 3)))[0][0] == "pass"


def test_a_core_for_each_busy_process() -> None:
    lines = [line for line in found(here(AMPERE, AMPERE, cores=3)) if "cores" in line[1]]
    assert [line[0] for line in lines] == ["warn"]
    assert not [line for line in found(here(AMPERE, AMPERE, cores=4)) if "cores" in line[1]]
    assert not [line for line in found(here(AMPERE, AMPERE, cores=0)) if "cores" in line[1]]  # not known
    assert not [line for line in found(here(AMPERE, cores=1)) if "cores" in line[1]]


@pytest.mark.parametrize("situation", [here(AMPERE, model=None, command=("server",)), here(AMPERE, engine="vllm-cpu"), here()])
def test_without_vllm_on_cards_there_is_nothing_to_judge(situation: CardSituation) -> None:
    assert found(situation) == []
