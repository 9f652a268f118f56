"""Facts about the power limits of GPUs: those of the driver, and those that were saved before a change."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vllm_safe.common import paths
from vllm_safe.driver.driver_facts import Nvml, ask_nvml

_HINT = "vllm-safe check shows what is wrong with the driver."


@dataclass(frozen=True)
class PowerCard:
    """The power limit of one GPU, in milliwatts. All of its limits are 0 if it has none that can be set."""

    index: int  # as in nvidia-smi
    uuid: str
    pci: str
    name: str = ""
    limit: int = 0  # in force now
    default: int = 0
    least: int = 0
    most: int = 0
    persistent: bool = False  # persistence mode: the driver keeps the limit while no process uses the GPU

    @property
    def title(self) -> str:
        """The GPU for a person."""
        return f"GPU {self.index} ({self.name})" if self.name else f"GPU {self.index}"


@dataclass(frozen=True)
class PowerReading:
    """The answer of the driver: the GPUs, or the problem in one line and what to do about it."""

    cards: tuple[PowerCard, ...] = ()
    problem: str = ""
    hint: str = ""


@dataclass(frozen=True)
class SavedLimit:
    """The state of a GPU from before the first change, as in PowerCard."""

    limit: int
    persistent: bool


@dataclass(frozen=True)
class PowerNote:
    """The file that is kept while limits are set. asked: the setting that they follow. before: by UUID."""

    asked: str = ""
    before: Mapping[str, SavedLimit] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the content of the file."""
        before = {uuid: [saved.limit, saved.persistent] for uuid, saved in self.before.items()}
        return json.dumps({"asked": self.asked, "before": before}) + "\n"


def read_power_note(file: Path = paths.POWER) -> PowerNote | None:
    """Read the file; None if no limit is set. It is gone after a boot, as the limits are."""
    try:
        values = json.loads(file.read_text())
        before = {str(uuid): SavedLimit(int(limit), persistent is True) for uuid, (limit, persistent) in values["before"].items()}
        return PowerNote(str(values["asked"]), before)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def read_power() -> PowerReading:
    """Ask the driver, in a process of its own."""
    return power_reading(ask_nvml())


def power_reading(seen: Nvml) -> PowerReading:
    """Return the GPUs of an answer of the driver; those that do not respond are left out."""
    if seen.hung:
        return PowerReading(problem="the NVIDIA driver did not answer in time", hint="journalctl -k -g NVRM may show the reason.")
    if seen.error is None:
        return PowerReading(problem="NVIDIA's library libnvidia-ml.so.1 is not installed", hint=_HINT)
    if seen.error:
        return PowerReading(problem=f"the NVIDIA driver does not answer (NVML error {seen.error})", hint=_HINT)
    return PowerReading(
        tuple(
            PowerCard(
                index,
                card.uuid,
                card.pci,
                card.name,
                limit=card.power_limit or 0,
                default=card.power_default or 0,
                least=card.power_least or 0,
                most=card.power_most or 0,
                persistent=card.persistence is True,
            )
            for index, card in enumerate(seen.cards)
            if card.uuid
        )
    )
