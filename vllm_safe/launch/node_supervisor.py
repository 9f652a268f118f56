"""The part of the main process's loop that deals with the other machines of its model. Only a model with `nodes` has it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from vllm_safe import __version__
from vllm_safe.common.errors import EXIT_MISUSE
from vllm_safe.contract.launch_file import Launch
from vllm_safe.launch.actions import Action
from vllm_safe.launch.lifecycle import Lifecycle
from vllm_safe.launch.node_group import HOLD, NodeGroup
from vllm_safe.launch.node_link import NodeLink
from vllm_safe.launch.node_messages import Alive, Farewell
from vllm_safe.launch.processes import files_digest


class _Held(NamedTuple):
    """The end of a server that is not reported yet. status: its wait status. text: the reason if no other machine reports one."""

    status: int
    until: float
    text: str


class NodeSupervisor:
    """Connects the server of this machine to those of the others. life: the state of the server."""

    def __init__(self, launch: Launch, life: Lifecycle) -> None:
        now = time.monotonic()
        agreed = {"vllm-safe": __version__, **(launch.agreed or {}), "the model's files": files_digest(Path(launch.checkpoint))}
        self._life = life
        self._group = NodeGroup(launch, agreed, now)
        self._link = NodeLink(launch, self._group, now)
        self._held: _Held | None = None

    @property
    def reading(self) -> tuple[int, ...]:
        """The descriptors to wait for until they are readable."""
        return self._link.reading

    @property
    def writing(self) -> tuple[int, ...]:
        """The descriptors to wait for until they are writable."""
        return self._link.writing

    @property
    def due(self) -> float:
        """The time of the next necessary call of `meet`."""
        return min(self._link.due, self._held.until) if self._held else self._link.due

    @property
    def phases(self) -> str:
        """The phase of each machine that this one is connected to."""
        return self._group.phases

    def environment(self) -> dict[str, str]:
        """Return the variables that depend on the route to the other machines."""
        return self._link.environment()

    def go(self) -> None:
        """Tell the other machines that all are connected."""
        self._link.go()

    def meet(self) -> list[Action]:
        """Exchange messages with the other machines. Return what follows from them."""
        now = time.monotonic()
        self._link.advance(now)
        if self._held and now >= self._held.until:
            self._group.blame(self._held.text)
        return self._life.met(now, time.time(), self._group)

    def report(self, exit_code: int | None) -> None:
        """Report the state of this machine to the others, or its end. exit_code: that of the main process, once it is known."""
        life = self._life
        drains = life.phase == "stopping" and life.cause in {"stopped", "room"} and self._group.is_first
        if life.phase in {"stopping", "ended"} and not drains:  # the requests that still run need the other machines
            self.say_farewell(exit_code)
        else:
            self._link.report(time.monotonic(), Alive(life.phase, life.loading.still if life.loading else 0.0, life.text))

    def say_farewell(self, exit_code: int | None) -> None:
        """Tell the other machines why this one ends. A reason that came from another machine is passed on as it is."""
        life, me = self._life, self._group.me
        ended = {"node": life.reason, "network": life.reason, "stopped": f"{me} was stopped"}
        why = life.text if life.cause == "exited" else life.reason
        self._link.end(Farewell(ended.get(life.cause, f"{me} ended: {why}"), never=exit_code == EXIT_MISUSE))

    def hold_end(self, status: int, head: Sequence[str], tail: Sequence[str]) -> bool:
        """Return whether the end of the server is held back, since the end of another machine may be its cause.

        status: its wait status. head, tail: the first lines of trouble and the last lines that it printed.
        """
        life = self._life
        if self._group.verdict or life.phase in {"stopping", "ended"}:
            return False
        line = ""
        with suppress(Exception):  # as in explain_end: the package may have been replaced meanwhile
            from vllm_safe.launch.node_blame import find_lost_connection  # noqa: PLC0415 - patterns that are only needed at an end

            line = find_lost_connection(head, tail, served=life.served)
        if line:
            what = f"the server on {self._group.me} lost its connection to another machine, which gave no reason: {line.strip()[-200:]}"
            self._held = _Held(status, time.monotonic() + HOLD, what)
            self._link.end(Farewell(what, never=False, elsewhere=True))
        return bool(line)

    def release_end(self) -> int | None:
        """Return the wait status of the end that was held back, once another machine has reported the cause, or after the wait for that."""
        held = self._held
        if held is None or self._life.phase not in {"stopping", "ended"}:
            return None
        self._held = None
        return held.status
