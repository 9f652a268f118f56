"""The guard's settings: /run/vllm-safe/guard.plan, written by `vllm-safe apply` from a valid configuration only.

Hence a mistake in config.yaml never reaches the guard: it keeps the last valid settings, and `note` says so.
"""

from __future__ import annotations

from vllm_safe.common.named_tuples import NamedTuple

PLAN_FILE = "/run/vllm-safe/guard.plan"  # root 0644
EVENTS_FOLDER = "/run/vllm-safe/guard"  # RuntimeDirectory= of the unit; it contains NAME.jsonl
MOST_BYTES = 65536  # of the plan file

# The longest freeze that can be configured, in seconds. All processes of a model are frozen together, but their clocks go on: a process
# that waits for an answer of another one must not reach its timeout. The shortest timeouts: 5 s, an idle HTTP connection of uvicorn (it is
# closed and opened again); 10 s, VLLM_RPC_TIMEOUT; 60 s and more, VLLM_ENGINE_ITERATION_TIMEOUT_S and the watchdog of vllm@.service; 480 s
# and more, those of NCCL.
MOST_FREEZE = 5.0


class Threshold(NamedTuple):
    """A threshold of a step: the operating system was stalled for the share `pressure` (0..1) of the last `after` seconds."""

    pressure: float
    after: float


class GuardPlan(NamedTuple):
    """The section `guard` of config.yaml."""

    enabled: bool = True
    # While a process swaps heavily to a hard disk, logins are stalled now and then, up to two seconds of ten: they are still as quick as on
    # an idle machine.
    squeeze: Threshold = Threshold(0.2, 2.0)
    freeze: Threshold = Threshold(0.5, 10.0)
    freeze_time: float = 3.0  # seconds, at most MOST_FREEZE
    kill: Threshold = Threshold(0.8, 60.0)
    note: str = ""  # the reason why these are not the settings of config.yaml, or ""

    @property
    def threshold(self) -> float:
        """The lowest pressure that any step reacts to."""
        return min(self.squeeze.pressure, self.freeze.pressure, self.kill.pressure)

    def to_text(self) -> str:
        """Return the text of the plan file: a key and its values in each line.

        It is not JSON, since the guard has no other use for the memory of the json module.
        """
        lines = [f"enabled {int(self.enabled)}", f"freeze_time {self.freeze_time}", f"note {' '.join(self.note.split())}"]
        steps = {"squeeze": self.squeeze, "freeze": self.freeze, "kill": self.kill}
        return "\n".join([*lines, *(f"{key} {step.pressure} {step.after}" for key, step in steps.items()), ""])

    @classmethod
    def from_text(cls, text: str) -> GuardPlan:
        """Read the text that `to_text` wrote. Raises ValueError for any other text."""
        values = {key: value for key, _, value in (line.partition(" ") for line in text.splitlines())}
        try:
            squeeze, freeze, kill = (Threshold(*map(float, values.pop(key).split())) for key in ("squeeze", "freeze", "kill"))
            enabled, freeze_time, note = bool(int(values.pop("enabled"))), float(values.pop("freeze_time")), values.pop("note")
        except (TypeError, KeyError) as error:
            raise ValueError(f"the file is incomplete: {error}") from error
        sane = all(0 < step.pressure <= 1 and step.after > 0 for step in (squeeze, freeze, kill)) and 0 < freeze_time <= MOST_FREEZE
        if values or not sane:
            raise ValueError("a value is out of its range")
        return cls(enabled, squeeze, freeze, freeze_time, kill, note)


def read_plan(path: str = PLAN_FILE) -> GuardPlan:
    """Read the plan file. Raises OSError if it cannot be read, ValueError if it is not valid."""
    with open(path, encoding="utf-8") as file:
        return GuardPlan.from_text(file.read(MOST_BYTES))
