"""Steps on the power limits of GPUs. The previous limit of each is saved before a change, and restored later, whoever asks for it.

The saved limits need no configuration, survive a process that was killed half-way, and are gone after the next boot, as the changes are.

Without persistence mode the driver forgets a limit as soon as no process uses the GPU, which is the case between this step and the start
of the model. Hence the mode is on while a limit is set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vllm_safe.common import paths
from vllm_safe.common.errors import Failure
from vllm_safe.common.file_steps import RemoveFile, WriteFile
from vllm_safe.common.steps import Step
from vllm_safe.driver.card_process import PYTHON, CardHungError, ask_card_program
from vllm_safe.power.power_decision import watts
from vllm_safe.power.power_facts import PowerCard, PowerNote, SavedLimit, read_power_note

_PROGRAM = Path(__file__).with_name("__main__.py")
_TIME = 60.0  # seconds for one GPU
_READ_ON = "nvidia-smi -q -d POWER shows the limits."


@dataclass(frozen=True)
class LimitChange:
    """The result of a change. limit: that of the GPU afterwards, in milliwatts. gone: the GPU is not there any more."""

    limit: int = 0
    problem: str = ""
    hint: str = ""
    gone: bool = False


@dataclass(frozen=True)
class SetPowerLimit:
    """Set the power limit of one GPU, in milliwatts. title: the GPU for a person."""

    uuid: str
    title: str
    limit: int

    def describe(self) -> str:
        """Describe the step in one line."""
        return f"set the power limit of {self.title} to {watts(self.limit)}"

    def run(self) -> None:
        """Set the limit. Raises Failure if the driver refuses it, or has another one afterwards."""
        change = change_power_limit(self.uuid, SavedLimit(self.limit, persistent=True))
        if change.problem:
            raise Failure(f"the power limit of {self.title} cannot be set: {change.problem}", hint=change.hint)
        if change.limit != self.limit:
            what = f"the power limit of {self.title} is {watts(change.limit)}, although {watts(self.limit)} was set"
            raise Failure(what, hint=_READ_ON)


@dataclass(frozen=True)
class RestorePowerLimits:
    """Restore the saved limits. A GPU that refuses does not keep the others from theirs."""

    before: Mapping[str, SavedLimit]

    def describe(self) -> str:
        """Describe the step in one line."""
        return f"restore the power limit of {', '.join(f'{uuid} ({watts(saved.limit)})' for uuid, saved in self.before.items())}"

    def run(self) -> None:
        """Restore the limits. Raises Failure with all GPUs that refused."""
        changes = {uuid: change_power_limit(uuid, saved) for uuid, saved in self.before.items()}
        problems = [
            f"{uuid} keeps its power limit: {change.problem}" for uuid, change in changes.items() if change.problem and not change.gone
        ]
        if problems:
            raise Failure("; ".join(problems), hint=f"{_READ_ON} A reboot restores them.")


def change_power_limit(uuid: str, wanted: SavedLimit, seconds: float = _TIME) -> LimitChange:
    """Give a GPU this limit and persistence mode, in a process of its own."""
    words = (uuid, str(wanted.limit), str(int(wanted.persistent)))
    try:
        answer = ask_card_program((*PYTHON, _PROGRAM, *words), seconds)
    except CardHungError:
        return LimitChange(problem=f"the NVIDIA driver did not answer within {seconds:g} s", hint="journalctl -k -g NVRM may show why.")
    if answer is None:
        return LimitChange(problem="NVIDIA's library ended the program that called it", hint="journalctl -k -g NVRM may show why.")
    return LimitChange(**answer)


def power_steps(asked: str, limits: Mapping[str, int], cards: tuple[PowerCard, ...], notes: Path = paths.POWER) -> tuple[Step, ...]:
    """Return the steps from the present limits to the decided `limits`. asked: the setting that they follow, "" for none."""
    noted = read_power_note(notes)
    if not limits:
        return undo_power_steps(notes)
    before = noted.before if noted else {}  # what was saved first is from before any change
    left = {uuid: saved for uuid, saved in before.items() if uuid not in limits}  # an edit of the setting no longer names them
    changed = [card for card in cards if card.uuid in limits and limits[card.uuid] != card.limit]
    if not changed and not left and noted and noted.asked == asked:
        return ()
    saved = {card.uuid: SavedLimit(card.limit, card.persistent) for card in cards if card.uuid in limits}
    kept = {uuid: limit for uuid, limit in {**saved, **before}.items() if uuid in limits}
    return (
        WriteFile(notes, PowerNote(asked, {**kept, **left}).to_json()),
        *(SetPowerLimit(card.uuid, card.title, limits[card.uuid]) for card in changed),
        *((RestorePowerLimits(left), WriteFile(notes, PowerNote(asked, kept).to_json())) if left else ()),
    )


def undo_power_steps(notes: Path = paths.POWER) -> tuple[Step, ...]:
    """Return the steps that restore the limits from before the first change."""
    noted = read_power_note(notes)
    return (RestorePowerLimits(noted.before), RemoveFile(notes)) if noted else ()
