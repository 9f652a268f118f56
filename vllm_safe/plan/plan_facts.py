"""The facts for the plan of a configured model: its files, the machine's GPUs, and what earlier starts reported."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from vllm_safe.common import paths
from vllm_safe.common.errors import Failure
from vllm_safe.driver.card_facts import NvmlCard
from vllm_safe.driver.visible_devices import visible_numbers
from vllm_safe.plan.disk_pace_facts import read_disk_pace
from vllm_safe.plan.headers_facts import StoredModel, read_stored_model
from vllm_safe.plan.past_starts import PastStart, StartConditions, engine_version, identify_cards, read_past_starts
from vllm_safe.plan.plan_question import PlanQuestion
from vllm_safe.plan.serving import Card, Serving, read_serving
from vllm_safe.record.card_usage import read_pci_cards


@dataclass(frozen=True)
class PlanFacts:
    """The facts. unread: why earlier starts could not be read, or "". pace: see StoredFiles."""

    stored: StoredModel
    serving: Serving
    cards: tuple[Card, ...]
    past: tuple[PastStart, ...] = ()
    unread: str = ""
    forked: bool = False  # its workers share imported modules
    pace: float = 0.0
    unordered: bool = False  # the GPUs are unlike, and it is not known which of them the server takes
    machines: int = 1  # the number of machines that serve it together; `cards` has the GPUs of all

    @property
    def question(self) -> PlanQuestion:
        """The question to the plan."""
        observed = tuple(start.observed for start in self.past)
        stored = self.stored
        unknown = ("which of the unlike GPUs it uses: the setting gpus says it",) if self.unordered else ()
        return PlanQuestion(stored.config, self.serving, self.cards, stored.tensors, stored.size, observed, unknown)


@dataclass(frozen=True)
class PlannedServer:
    """The server to plan for. model: a hub id or the path of a folder; args: the options of `vllm serve`; env: its environment.

    machines: the number of machines that serve it together. The others are assumed to have the same GPUs as this one.
    """

    name: str
    model: str
    args: Mapping[str, Any]
    env: Mapping[str, str]
    machines: int = 1


def read_plan_facts(
    server: PlannedServer, cards: Iterable[NvmlCard], root: Path = Path("/"), *, stored: Callable[[str], StoredModel] = read_stored_model
) -> PlanFacts:
    """Read the facts. cards: all of the machine; stored: where to read the model's files.

    Raises Failure if the model's files cannot be read, and Misuse if an option has a value that it cannot have.
    """
    name, args, env = server.name, server.args, server.env
    engine = ""
    with suppress(OSError):
        engine = (root / "var/lib/vllm-safe/engine/current").readlink().name
    serving = read_serving(args, env, engine_version(engine))
    visible = env.get("CUDA_VISIBLE_DEVICES")
    now = StartConditions(
        str(args.get("model", "")), engine, identify_cards(read_pci_cards("" if root == Path("/") else str(root))), visible
    )
    past: tuple[PastStart, ...] = ()
    unread = ""
    try:
        past = read_past_starts(name, now, paths.RUNS)
    except Failure as failure:
        unread = failure.message
    forked = env.get("VLLM_WORKER_MULTIPROC_METHOD") == "fork"
    there = tuple(cards)
    chosen = _visible_cards(there, visible, f"vllm@{name}.service")
    pace = read_disk_pace(server.model) if env.get("PYTHONPATH") == str(paths.ENGINE_PLUGINS) else 0.0
    unordered = _is_unordered(there * server.machines, serving, env)
    return PlanFacts(stored(server.model), serving, chosen * server.machines, past, unread, forked, pace, unordered, server.machines)


def _is_unordered(cards: tuple[NvmlCard, ...], serving: Serving, env: Mapping[str, str]) -> bool:
    """Return whether it is not known which of unlike GPUs each worker gets: CUDA by itself numbers the fastest first."""
    visible = env.get("CUDA_VISIBLE_DEVICES")
    alike = len({(card.name, card.memory, card.capability) for card in cards}) <= 1
    numbered = env.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" and (visible is None or visible_numbers(visible) is not None)
    same = serving.pipeline_parallel == 1 and serving.ranks == len(cards) and visible is None  # each of them gets an equal part
    return not (alike or numbered or same)


def _visible_cards(cards: tuple[NvmlCard, ...], visible: str | None, unit: str) -> tuple[Card, ...]:
    """Return the GPUs that the server sees, in its order, without the memory that the model itself uses of them now."""
    numbers = visible_numbers(visible)
    chosen = cards if numbers is None else tuple(cards[number] for number in takewhile(lambda number: number < len(cards), numbers))
    return tuple(_card(card, unit) for card in chosen if card.memory)


def _card(card: NvmlCard, unit: str) -> Card:
    own = [process.memory for process in card.processes if process.unit == unit]
    used = 0 if own and not all(own) else max(0, card.used - sum(own))  # the driver may not say how much each has
    return describe_card(card, used)


def describe_card(card: NvmlCard, used: int) -> Card:
    """Return a GPU as CUDA sees it. used: bytes that others have of it."""
    return Card(card.memory - card.reserved, card.capability, used, card.name)
