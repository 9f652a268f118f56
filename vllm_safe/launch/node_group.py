"""The decisions of one machine about the others that serve the same model. Pure: the time is a parameter.

The first machine is connected to all others, and each of these to the first alone, which passes on the reason for an end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from vllm_safe.common.sizes import format_span
from vllm_safe.contract.launch_file import Launch
from vllm_safe.launch.node_messages import Alive, Farewell, Go, Hello, NodeMessage

REPORT_EVERY = 2.0  # seconds between two messages
# Seconds of silence after which a machine counts as gone. This is longer than a freeze by its guard or a wait for swap. Time in which this
# process itself did not run does not count.
SILENT = 30.0
# Seconds for which a machine whose server lost a connection waits for the cause from another machine. vLLM takes four to notice that one of
# its workers died.
HOLD = 10.0
_LONGEST_TICK = 5.0  # of a longer time between two ticks, no more than these seconds count


class _Other(NamedTuple):
    """A machine that is connected. quiet: seconds since its last message."""

    quiet: float = 0.0
    phase: str = ""
    still: float = 0.0
    text: str = ""


class NodeGroup:
    """The machines of one model, as one of them sees the others. agreed: its values of what must be the same on all."""

    def __init__(self, launch: Launch, agreed: Mapping[str, str], now: float) -> None:
        self.me = launch.nodes[launch.rank]
        self.is_first = launch.rank == 0
        self.names = launch.nodes[1:] if self.is_first else launch.nodes[:1]  # those that this machine is connected to
        self.hello = Hello(launch.name, self.me, agreed)
        self.started = False  # whether the servers were started
        # The reason for which this machine must end its server. elsewhere: this machine has observed it, and none has reported a cause.
        self.verdict: Farewell | None = None
        self.trouble = ""  # why no connection can be made at the moment
        self._first = launch.nodes[0]
        self._here: dict[str, _Other] = {}
        self._suspicion = ""  # the reason from a machine whose server lost its connection to another one ...
        self._suspected = 0.0  # ... and the seconds since
        self._last: dict[str, str] = {}  # the last reasons of machines that ended while this one waited
        self._now = now

    def pass_time(self, now: float) -> tuple[str, ...]:
        """Advance the clocks. Return the machines that have been silent for too long: their connections have to be closed."""
        passed = min(max(now - self._now, 0.0), _LONGEST_TICK)
        self._now = now
        self._here = {name: other._replace(quiet=other.quiet + passed) for name, other in self._here.items()}
        self._suspected += passed
        if self._suspicion and self._suspected >= HOLD and self.verdict is None:
            self.verdict = Farewell(self._suspicion, never=False, elsewhere=True)
        silent = tuple(name for name, other in self._here.items() if other.quiet >= SILENT)
        for name in silent:
            text = f"{name} has not been heard from for {format_span(SILENT)}: it is down, or the network to it is"
            self._lose(name, Farewell(text, never=False, elsewhere=True))
        return silent

    def greet(self, hello: Hello) -> str:
        """Handle the first message of another machine, on the first one. Return why that machine cannot take part, or ""."""
        name = hello.node
        if hello.model != self.hello.model:
            return f"{self.me} serves {self.hello.model} on this port, and {name} asks for {hello.model}"
        if self.started:
            self._lose(name, Farewell(f"{name} was started again while the others served", never=False))
            return f"{self.me} is ending the server that it had started before {name} came back"
        there, here = hello.agreed, self.hello.agreed
        if what := next((what for what in {**here, **there} if here.get(what) != there.get(what)), ""):
            differs = f"{what} differs: {here.get(what) or 'none'} on {self.me}, {there.get(what) or 'none'} on {name}"
            self.verdict = Farewell(differs, never=True)
            return differs
        self._here[name] = _Other()
        self._last.pop(name, None)
        return ""

    def connected(self) -> None:
        """Note, on another machine, that it is connected to the first one."""
        self._here[self._first] = _Other()

    def received(self, name: str, message: NodeMessage) -> None:
        """Handle a message of a machine that is connected."""
        if name not in self._here:
            return
        self._here[name] = self._here[name]._replace(quiet=0.0)
        match message:
            case Alive():
                self._here[name] = _Other(0.0, message.phase, message.still, message.text)
            case Go():
                self.started = self.started or not self.is_first
            case Farewell() if message.elsewhere:
                self._suspicion, self._suspected = self._suspicion or message.text, 0.0
            case Farewell():
                self._lose(name, message)
            case Hello():
                pass  # only the first one counts

    def disconnected(self, name: str) -> None:
        """Note that the connection to a machine was closed."""
        if name in self._here:
            text = self._suspicion or f"{name} ended without giving a reason"
            self._lose(name, Farewell(text, never=False, elsewhere=bool(self._suspicion)))

    def blame(self, text: str) -> None:
        """Note that the server of this machine ended because of another one, which has given no reason."""
        self.verdict = self.verdict or Farewell(text, never=False, elsewhere=True)

    def refuse(self, text: str) -> None:
        """Note that this model can never be served with these machines."""
        self.verdict = self.verdict or Farewell(text, never=True)

    @property
    def complete(self) -> bool:
        """Whether this is the first machine, and all others are connected."""
        return self.is_first and len(self._here) == len(self.names)

    @property
    def first_serves(self) -> bool:
        """Whether this is another machine, and the first one says that the model answers."""
        return not self.is_first and self._first in self._here and self._here[self._first].phase == "ready"

    @property
    def still(self) -> float:
        """The shortest time without progress of the other machines. While one of them makes progress, this one may have to wait for it."""
        return min((other.still for other in self._here.values()), default=0.0)

    @property
    def waiting_for(self) -> str:
        """The status while this machine waits for the others before it starts its server."""
        missing = [name for name in self.names if name not in self._here]
        said = "".join(f"; {text}" for name in missing if (text := self._last.get(name)))
        problem = f" ({self.trouble})" if self.trouble else ""
        if missing:
            return f"waiting for {' and '.join(missing)}{problem}{said}"
        text = self._here[self._first].text if self._first in self._here else ""
        return text if text.startswith("waiting for ") else f"waiting for {self._first} to start the model"

    @property
    def phases(self) -> str:
        """The phase of each machine that this one is connected to: "gpu2: loading, gpu3: not there"."""
        return ", ".join(
            f"{name}: {self._here[name].phase or 'there'}" if name in self._here else f"{name}: not there" for name in self.names
        )

    @property
    def progress(self) -> str:
        """The phases of the other machines that are not ready yet, to be appended to a status."""
        return "".join(f"; {name}: {other.phase}" for name, other in self._here.items() if other.phase not in {"", "ready"})

    def _lose(self, name: str, farewell: Farewell) -> None:
        self._here.pop(name, None)
        self._last[name] = farewell.text
        if (self.started or farewell.never) and self.verdict is None:
            self.verdict = farewell
