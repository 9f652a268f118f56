"""The guard's settings as it reads them: /run/vllm-safe/guard.plan, written by `vllm-safe apply` from a valid configuration only.

Hence a mistake in config.yaml never reaches the guard: it keeps the last good settings, and `note` says that they are.
"""

from __future__ import annotations

from typing import NamedTuple

PLAN_FILE = "/run/vllm-safe/guard.plan"  # root 0644
EVENTS_FOLDER = "/run/vllm-safe/guard"  # RuntimeDirectory= of the unit; NAME.jsonl below it
MOST_BYTES = 65536  # of the plan file

# Longest freeze that can be asked for, in seconds. All of a model's processes stand still together, but their clocks go on: what waits for
# another's answer must not find its time over. Shortest such times: 5 s, an idle HTTP connection of uvicorn (it is closed, and opened
# again); 10 s, VLLM_RPC_TIMEOUT; 60 s and more, VLLM_ENGINE_ITERATION_TIMEOUT_S, the watchdog of vllm@.service; 480 s and more, NCCL's.
MOST_FREEZE = 5.0


class Threshold(NamedTuple):
    """When to act: the OS was stalled for the share `pressure` (0..1) of the last `after` seconds."""

    pressure: float
    after: float


class GuardPlan(NamedTuple):
    """The section `guard` of config.yaml."""

    enabled: bool = True
    # Logins beside a hog that swaps to a hard disk wait for it now and then, up to two seconds of ten: they are as quick as when idle.
    squeeze: Threshold = Threshold(0.2, 2.0)
    freeze: Threshold = Threshold(0.5, 10.0)
    freeze_time: float = 3.0  # seconds, at most MOST_FREEZE
    kill: Threshold = Threshold(0.8, 60.0)
    note: str = ""  # why these are not the settings of config.yaml, or ""

    @property
    def threshold(self) -> float:
        """The least pressure that means anything."""
        return min(self.squeeze.pressure, self.freeze.pressure, self.kill.pressure)

    def to_text(self) -> str:
        """The plan file: a key and its values in each line. No JSON: its module is memory that the guard has no other use for."""
        lines = [f"enabled {int(self.enabled)}", f"freeze_time {self.freeze_time}", f"note {' '.join(self.note.split())}"]
        steps = {"squeeze": self.squeeze, "freeze": self.freeze, "kill": self.kill}
        return "\n".join([*lines, *(f"{key} {step.pressure} {step.after}" for key, step in steps.items()), ""])

    @classmethod
    def from_text(cls, text: str) -> GuardPlan:
        """The plan that `to_text` wrote. ValueError if the text is anything else."""
        values = {key: value for key, _, value in (line.partition(" ") for line in text.splitlines())}
        try:
            squeeze, freeze, kill = (Threshold(*map(float, values.pop(key).split())) for key in ("squeeze", "freeze", "kill"))
            enabled, freeze_time, note = bool(int(values.pop("enabled"))), float(values.pop("freeze_time")), values.pop("note")
        except (TypeError, KeyError) as error:
            raise ValueError(f"it is not whole: {error}") from error
        sane = all(0 < step.pressure <= 1 and step.after > 0 for step in (squeeze, freeze, kill)) and 0 < freeze_time <= MOST_FREEZE
        if values or not sane:
            raise ValueError("a value is out of its range")
        return cls(enabled, squeeze, freeze, freeze_time, kill, note)


def read_plan(path: str = PLAN_FILE) -> GuardPlan:
    """The plan in the file. OSError or ValueError if there is none."""
    with open(path, encoding="utf-8") as file:
        return GuardPlan.from_text(file.read(MOST_BYTES))
