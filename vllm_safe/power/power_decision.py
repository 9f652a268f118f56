"""The decision which power limit each GPU gets while a model runs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from vllm_safe.config.power_types import EVERY_CARD, PowerCap, write_power_caps
from vllm_safe.config.settings import Config
from vllm_safe.driver.card_findings import name_cards
from vllm_safe.power.power_facts import PowerCard

_SETTING = "gpu.power_limit"


@dataclass(frozen=True)
class PowerPlan:
    """The limits in milliwatts by UUID, and what is wrong with the setting, one line for each problem."""

    limits: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def decide_power(config: Config, cards: Iterable[PowerCard]) -> PowerPlan:
    """Decide the limits. A GPU that the setting does not name has none. A limit outside the range of its GPU is a problem."""
    caps, cards = config.gpu.power_limit or {}, tuple(cards)
    limits: dict[str, int] = {}
    problems: list[str] = []
    refusals: dict[str, list[PowerCard]] = {}  # a sentence that begins with the cards
    for name, cap in caps.items():
        found = [card for card in cards if _is_named(card, name)]
        if not found:
            problems.append(f"{_SETTING} names {name}, but there is no such GPU: {_known(cards)}")
        for card in found:
            if card.uuid in limits:
                problems.append(f"{_SETTING} names {card.title} twice, the second time as {name}")
            elif refusal := _refusal(card, cap):
                refusals.setdefault(refusal, []).append(card)
            limits[card.uuid] = cap.of(card.default)
    return PowerPlan(limits, (*problems, *(f"{title_cards(of)}: {refusal}" for refusal, of in refusals.items())))


def asked_power(config: Config) -> str:
    """Return the setting as one line, "" where no limit is set: what was applied is compared with it."""
    return write_power_caps(config.gpu.power_limit) if config.gpu.power_limit else ""


def named_as(config: Config, card: PowerCard) -> str:
    """Return the name by which the setting limits a card, or ""."""
    return next((name for name in config.gpu.power_limit or {} if _is_named(card, name)), "")


def title_cards(cards: Iterable[PowerCard]) -> str:
    """Return the cards for a person, such as "cards 0 and 1 (NVIDIA GeForce RTX 3060)"."""
    cards = tuple(cards)
    if len(cards) == 1 or len({card.name for card in cards}) > 1:
        return ", ".join(card.title for card in cards)
    return f"{name_cards(card.index for card in cards)} ({cards[0].name})"


def describe_power(plan: PowerPlan, cards: Iterable[PowerCard]) -> str:
    """Return the limits for a person, such as "127.5 W of 170 W for cards 0 and 1 (NVIDIA GeForce RTX 3060)"."""
    groups: dict[tuple[int, int], list[PowerCard]] = {}
    for card in cards:
        if card.uuid in plan.limits:
            groups.setdefault((plan.limits[card.uuid], card.default), []).append(card)
    return "; ".join(f"{watts(limit)} of {watts(default)} for {title_cards(of)}" for (limit, default), of in groups.items())


def watts(milliwatts: int) -> str:
    """Return an amount for a person, such as "127.5 W"."""
    return f"{milliwatts / 1000:g} W"


def _refusal(card: PowerCard, cap: PowerCap) -> str:
    """Return why the card cannot have the limit, or ""."""
    if not card.most or not card.default:
        return f"no power limit can be set; {_SETTING} can name only the others, such as {{0: 75%}}"
    wanted = cap.of(card.default)
    if card.least <= wanted <= card.most:
        return ""
    amount = f"{cap} of {watts(card.default)}, which is {watts(wanted)}," if cap.is_percent else watts(wanted)
    return f"{_SETTING} {amount} is out of range; expected {watts(card.least)} to {watts(card.most)}"


def _is_named(card: PowerCard, name: str) -> bool:
    if ":" in name:
        return _address(name) == _address(card.pci)
    return name in {EVERY_CARD, str(card.index)} or name.lower() == card.uuid.lower()


def _address(text: str) -> tuple[int, ...]:
    """Return domain, bus, device and function. nvidia-smi writes 00000000:01:00.0, the kernel 0000:01:00.0, lspci 01:00.0."""
    numbers = [int(part, 16) for part in re.split(r"[:.]", text if "." in text else f"{text}.0")]
    return (*[0] * (4 - len(numbers)), *numbers)


def _known(cards: tuple[PowerCard, ...]) -> str:
    return f"the driver has {len(cards)}, numbered from 0" if cards else "the driver has none"
