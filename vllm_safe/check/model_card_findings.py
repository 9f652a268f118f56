"""Findings on one model and the cards that it would use: what they can compute, their free memory, how they reach each other, and cores.

The requirements are those of the version of vLLM in engine/locks, 0.32.0. Comments name the places in its source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vllm_safe.check.model_needs import ModelNeeds
from vllm_safe.common.findings import Finding, failed, passed, warned
from vllm_safe.common.sizes import format_size
from vllm_safe.decide.start_checks import Situation
from vllm_safe.driver.card_facts import WIDE_LINK, NvmlCard
from vllm_safe.driver.card_findings import name_cards
from vllm_safe.driver.driver_facts import Driver
from vllm_safe.host.rig_facts import HardwareFacts
from vllm_safe.plan.plan_limits import OLDEST_CAPABILITIES
from vllm_safe.record.card_usage import visible_cards

_BFLOAT16 = (8, 0)  # platforms/cuda.py:256
_FP8 = (8, 9)  # layers/quantization/compressed_tensors/schemes/compressed_tensors_w8a8_fp8.py:85
_UTILISATION = 0.92  # config/cache.py:102
_NEARLY = 0.01  # share of a GPU: NVML and CUDA count the memory that the driver keeps for itself differently

# Models for which vLLM refuses float16, since they overflow: config/model.py:2380.
_NO_FLOAT16 = frozenset({"gemma2", "gemma3", "gemma3_text", "glm4"})


@dataclass(frozen=True)
class CardSituation:
    """A model, its demands, and the facts about the machine's GPUs."""

    at: Situation
    driver: Driver
    rig: HardwareFacts
    needs: ModelNeeds
    stopped: bool = True  # none of its processes is there

    @property
    def chosen(self) -> dict[int, NvmlCard]:
        """The cards that the model would use, by their numbers in nvidia-smi: as many as it is split over, of those that it sees."""
        cards = self.driver.nvml.cards
        environment = {name: sourced.value for name, sourced in self.at.server.environment.items()}
        seen = visible_cards(environment, [card.name for card in cards])
        mine = {index: card for index, card in enumerate(cards) if seen is None or index in seen}
        alike = len({(card.name, card.memory) for card in mine.values()}) == 1
        if self.at.server.world_size and (alike or environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"):
            return dict(list(mine.items())[: self.at.server.world_size])
        return mine  # which of them is not known: CUDA numbers the fastest first

    @property
    def used(self) -> dict[int, NvmlCard]:
        """Those of them that respond."""
        return {index: card for index, card in self.chosen.items() if card.capability > (0, 0)}

    def argument(self, name: str, default: object = None) -> Any:  # noqa: ANN401 - of JSON's types
        """Return an option of `vllm serve`."""
        found = self.at.server.arguments.get(name)
        return default if found is None else found.value

    @property
    def path(self) -> str:
        """The place of the model's options in the configuration."""
        return f"models.{self.at.name}.args"


def check_model_on_cards(here: CardSituation) -> Iterator[Finding]:
    """Yield the findings; none for a server that is not vLLM, or where no card answers."""
    if here.at.model.command is None and here.at.config.engine.package == "vllm" and here.used:
        for check in _CHECKS:
            yield from check(here)


def _lost(here: CardSituation) -> Iterator[Finding]:
    silent = here.chosen.keys() - here.used.keys()
    if silent and len(here.used) < here.at.server.world_size:
        do = "does" if len(silent) == 1 else "do"
        what = f"{here.at.name} is split over {here.at.server.world_size} GPUs, but {name_cards(silent)} {do} not respond"
        yield failed(what, f"See above for the reason. To do with fewer: {here.path}.tensor-parallel-size, and models.{here.at.name}.gpus")


def _dtype(here: CardSituation) -> Iterator[Finding]:
    """Find whether the cards compute in the model's type: vLLM itself takes float16 where none of them knows bfloat16."""
    needs, name = here.needs, here.at.name
    old = {index: card for index, card in here.used.items() if card.capability < _BFLOAT16}
    if needs.dtype != "bfloat16" or not old:
        return
    which = f"{name_cards(old)} ({_capabilities(old)})"
    if needs.chosen or len(old) < len(here.used):
        what = f"{name} is to be computed in bfloat16, which {which} cannot: vLLM would exit"
        yield failed(what, f"Set {here.path}.dtype: {'float32, for twice the memory' if needs.kind in _NO_FLOAT16 else 'half'}")
    elif needs.kind in _NO_FLOAT16:
        what = f"{name} was made for bfloat16, which {which} cannot, and overflows in float16: vLLM computes in float32"
        yield warned(what, "It takes twice the memory, and more time: use a GPU of compute capability 8.0 or newer.")
    else:
        what = f"{name} was made for bfloat16, which {which} cannot: vLLM computes in float16, in which large values overflow"
        yield warned(what, f"Set {here.path}.dtype: half, if its answers are right; it says that this is meant.")


def _quantisation(here: CardSituation) -> Iterator[Finding]:
    needs, name = here.needs, here.at.name
    oldest = OLDEST_CAPABILITIES.get(needs.quantisation)
    old = {index: card for index, card in here.used.items() if oldest and card.capability < oldest}
    if oldest and old:
        what = f"{name} is quantised with {needs.quantisation}, which needs compute capability {oldest[0]}.{oldest[1]}; too old"
        yield failed(f"{what}: {name_cards(old)} ({_capabilities(old)})", "Use other GPUs (`gpus`), or another quantisation of the model.")
        return
    slow = {index: card for index, card in here.used.items() if card.capability < _FP8}
    if needs.float8 and slow:  # utils/marlin_utils_fp8.py:109
        what = f"{name} has FP8 weights, with which {name_cards(slow)} ({_capabilities(slow)}) cannot compute"
        yield passed(f"{what}: they stay FP8 in memory, and vLLM computes in 16 bits (Marlin)")
    elif needs.quantisation and not oldest:
        yield passed(f"{name} is quantised with {needs.quantisation}: vllm-safe does not know which GPUs support it")
    elif needs.quantisation or needs.dtype:
        parts = " and ".join(part for part in (needs.quantisation, needs.dtype) if part)
        if needs.dtype != "bfloat16" or all(card.capability >= _BFLOAT16 for card in here.used.values()):
            yield passed(f"{name} needs {parts}, which {name_cards(here.used)} ({_capabilities(here.used)}) can compute")
    else:
        yield passed(f"{name}: its demands on a GPU are not known before its config.json is there")


def _capabilities(cards: Mapping[int, NvmlCard]) -> str:
    return ", ".join(sorted({f"{card.capability[0]}.{card.capability[1]}" for card in cards.values()}))


def _memory(here: CardSituation) -> Iterator[Finding]:
    """Find whether enough of each card is free: vLLM wants its share of the whole card at once (v1/worker/utils.py:716)."""
    share = here.argument("gpu-memory-utilization", _UTILISATION)
    if not here.stopped or not isinstance(share, int | float) or not 0 < share <= 1:
        return
    rest = {index: (card.memory - card.used) / card.memory for index, card in here.used.items() if card.memory}
    short = {index: left for index, left in rest.items() if left < share}
    if not short:
        return
    least = min(short.values())
    free = "; ".join(f"{left:.0%} of GPU {index} is free" for index, left in short.items())
    what = f"{here.at.name} asks for {share:.0%} of each GPU, but {free}".replace("%", " %")
    hint = f"Stop what uses it, or set {here.path}.gpu-memory-utilization: {max(0, int(100 * (least - _NEARLY))) / 100:.2f}"
    yield failed(what, hint) if share - least > _NEARLY else warned(what, hint)


def _unlike(here: CardSituation) -> Iterator[Finding]:
    sizes = {card.memory for card in here.used.values()}
    if len(here.used) < 2 or len(sizes) < 2 or here.at.server.world_size < 2:
        return
    what = f"{here.at.name} is split over unlike GPUs ({name_cards(here.used)}): it can use {format_size(min(sizes))} of each"
    layers = "pipeline-parallel-size in place of tensor-parallel-size, with env.VLLM_PP_LAYER_PARTITION, gives each GPU its share of layers"
    ordered = "" if here.at.model.gpus else "; gpus keeps their order, which CUDA else makes by speed"
    yield warned(what, f"In models.{here.at.name}: {layers}{ordered}.")


def _peers(here: CardSituation) -> Iterator[Finding]:
    """Find what NCCL will use between the cards of the model, and whether its profile suits their links."""
    name, used = here.at.name, here.used
    if here.at.server.world_size < 2 or len(used) < 2:
        return
    environment = here.at.server.environment
    off = environment.get("NCCL_P2P_DISABLE")
    lanes = {card.address: card.lanes for card in here.driver.pci}
    narrow = [index for index, card in used.items() if 0 < lanes.get(card.pci, 0) < WIDE_LINK]
    if narrow and here.at.model.profile != "pcie-riser":
        what = f"{name} uses {name_cards(narrow)}, whose PCIe link has less than {WIDE_LINK} lanes: with the defaults, such GPUs hang"
        yield warned(what, f"Set models.{name}.profile: pcie-riser")
    elif narrow:
        yield passed(f"{name} uses {name_cards(narrow)}, whose PCIe link has less than {WIDE_LINK} lanes: profile pcie-riser is for them")
    pairs = [pair for pair in here.driver.nvml.pairs if pair.first in used and pair.second in used]
    reach = [pair for pair in pairs if pair.access == 0]
    if off is not None and off.value == "1":
        lost = f"; without it, {len(reach)} of {len(pairs)} pairs could reach each other" if reach else ""
        yield passed(f"{name}: NCCL goes through RAM, since NCCL_P2P_DISABLE is 1 ({off.origin}){lost}")
    elif reach and len(reach) == len(pairs):
        yield passed(f"{name}: NCCL goes from GPU to GPU, {'over NVLink' if all(pair.nvlink for pair in pairs) else 'over PCIe'}")
    elif pairs:
        some = f"between {len(pairs) - len(reach)} of {len(pairs)} pairs of GPUs" if reach else "between its GPUs"
        more = "" if here.argument("disable-custom-all-reduce") else f"; {here.path}.disable-custom-all-reduce: true saves vLLM's probe"
        yield passed(f"{name}: NCCL goes through RAM {some}{more}")


def _cores(here: CardSituation) -> Iterator[Finding]:
    """Find whether each busy process has a core: vLLM's docs/configuration/optimization.md, "CPU Resources for GPU Deployments"."""
    wanted = here.at.server.world_size + 2
    if here.at.server.world_size > 1 and 0 < here.rig.cores < wanted:  # a single card has no worker process beside the scheduler
        what = (
            f"{here.at.name} has {wanted} busy processes (one for each GPU, the scheduler, the API), but there are {here.rig.cores} cores"
        )
        yield warned(what, "Expect fewer tokens a second than the GPUs could make; only fewer GPUs or a processor with more cores help.")


_CHECKS: tuple[Callable[[CardSituation], Iterator[Finding]], ...] = (_lost, _dtype, _quantisation, _memory, _unlike, _peers, _cores)
