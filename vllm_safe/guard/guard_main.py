"""The loop of vllm-safe-guard.service: wait for a PSI trigger, read, decide, act. Without pressure it wakes up every ten seconds."""

from __future__ import annotations

import os
import select
import signal
import time

from vllm_safe.common import libc
from vllm_safe.common.kernfs import CGROUPS
from vllm_safe.common.notify import notify
from vllm_safe.common.signal_pipe import asks_to_stop, open_signal_pipe, read_signals
from vllm_safe.contract.guard_file import PLAN_FILE, GuardPlan, read_plan
from vllm_safe.guard.guard_actions import CgroupControl
from vllm_safe.guard.guard_decision import TICK, GuardAction, GuardState
from vllm_safe.guard.guard_journal import ERROR, WARNING, Journal
from vllm_safe.guard.pressure_watch import PressureWatch, Triggers
from vllm_safe.guard.rehearsal import rehearse

SLOW = 10.0  # seconds between two readings without pressure
ESTIMATING = 0.9  # the same without PSI in the kernel: a window of one second then always contains the previous reading
_EXIT_NO_CGROUPS = 78  # EX_CONFIG: systemd does not try again. Not 2, with which Python exits if it cannot open its script
_GONE = select.POLLERR | select.POLLHUP | select.POLLNVAL


def main(root: str = CGROUPS) -> int:
    """Run the guard and return the exit code: 0 stopped, 78 on a machine without cgroup v2."""
    journal = Journal()
    if not os.path.exists(f"{root}/cgroup.controllers"):  # noqa: PTH110 - pathlib is 2 MB
        text = "the unified cgroup hierarchy (cgroup v2) is not in use: the guard cannot run. Boot with systemd.unified_cgroup_hierarchy=1"
        journal.say(text, ERROR)
        notify(STATUS=text)
        return _EXIT_NO_CGROUPS
    loop = GuardLoop(journal, root)
    loop.recover()
    rehearse()
    loop.prepare()
    try:
        libc.lock_memory()
    except OSError as error:
        journal.say(f"the guard's memory cannot be locked, as in most containers: {error}", WARNING)
    return loop.run()


class GuardLoop:
    """The loop, and everything that it holds open."""

    def __init__(self, journal: Journal, root: str = CGROUPS, plan_file: str = PLAN_FILE) -> None:
        self._journal, self._plan_file = journal, plan_file
        self._watch, self._control, self._triggers, self._poll = PressureWatch(root), CgroupControl(root), Triggers(root), select.poll()
        self._plan, self._guard = GuardPlan(), GuardState(GuardPlan())
        self._plan_seen: tuple[int, int] | None = None  # time and inode of the plan file
        self._signals = open_signal_pipe((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
        self._poll.register(self._signals, select.POLLIN)
        self._status = ""
        self._slept = _slept()
        self._slow_at = 0.0
        self._beat_at = 0.0

    def recover(self) -> None:
        """Reverse the actions of an earlier guard that was killed."""
        for unit in self._control.recover():
            self._journal.say(f"{unit} thawed and restored: an earlier guard ended while it was throttled", WARNING, unit)

    def prepare(self) -> None:
        """Read the plan and report readiness to systemd."""
        self._reread_plan(first=True)
        if not self._watch.pressure:
            text = (
                "pressure stall information (PSI) is not available: using RAM, swap and major faults instead. Boot with psi=1 to enable it"
            )
            self._journal.say(text, WARNING)
        self._look()
        notify(READY="1", STATUS=self._status)

    def run(self) -> int:
        """Run until systemd stops the guard; return the exit code."""
        while True:
            for file, event in self._poll.poll(self._timeout() * 1000):
                if file == self._signals:
                    if asks_to_stop(read_signals(self._signals)):  # SIGHUP only wakes us up, to look
                        return self._end()
                elif event & _GONE:  # a removed cgroup reports POLLPRI as well, for ever
                    self._triggers.drop(file, self._poll)
                else:
                    self._guard.woken(time.monotonic())
            self._look()

    def _timeout(self) -> float:
        if not self._plan.enabled and not self._guard.held_back:
            return SLOW
        if self._guard.wakeful:
            return TICK
        return SLOW if self._watch.pressure else ESTIMATING

    def _look(self) -> None:
        now = time.monotonic()
        if now >= self._slow_at:
            self._slow_at = now + SLOW - TICK
            self._look_slowly(now)
        if (slept := _slept()) - self._slept > 1:
            self._guard.suspended()
        self._slept = slept
        for act in self._guard.tick(self._watch.read()):
            self._do(act)
        self._control.hold()
        self._update_status(now)

    def _look_slowly(self, now: float) -> None:
        self._reread_plan()
        if self._plan.enabled:
            self._triggers.set(self._plan.threshold, self._poll)
            if self._watch.short():
                self._guard.woken(now)
        else:
            self._triggers.clear(self._poll)

    def _do(self, act: GuardAction) -> None:
        """Carry out an action and log it. A kill is logged first, since the unit exits afterwards."""
        if act.kind == "kill":
            self._journal.record(act)
        if trouble := self._control.do(act):
            self._journal.say(f"cannot {act.kind} {trouble}", ERROR, act.unit)
        if act.kind != "kill":
            self._journal.record(act)

    def _end(self) -> int:
        notify(STOPPING="1")
        for act in self._guard.release():
            self._do(act)
        self._control.recover()
        return 0

    def _reread_plan(self, *, first: bool = False) -> None:
        try:
            status = os.stat(self._plan_file)  # noqa: PTH116 - pathlib is 2 MB
            seen = (status.st_mtime_ns, status.st_ino)
            if seen == self._plan_seen:
                return
            self._plan_seen = seen
            plan = read_plan(self._plan_file)
        except FileNotFoundError:
            return  # `vllm-safe apply` has not run yet: the defaults or the last settings stay in force
        except (OSError, ValueError) as error:
            self._journal.say(f"{self._plan_file} cannot be used, the last valid settings stay in force: {error}", WARNING)
            return
        if plan.note and plan.note != self._plan.note:
            self._journal.say(f"the last valid settings stay in force: {plan.note}", WARNING)
        if plan != self._plan:
            self._plan = plan
            self._guard.obey(plan)
            if not first:
                self._journal.say("new settings are in force" if plan.enabled else "disabled: guard.enabled is false")

    def _update_status(self, now: float) -> None:
        """Update the line that `systemctl status vllm-safe-guard` shows, if it has changed, and notify the watchdog."""
        held = ", ".join(f"{unit} is {how}" for unit, how in self._guard.held_back.items())
        if not self._plan.enabled:
            status = "disabled: guard.enabled is false in config.yaml"
        elif self._watch.pressure:
            status = held or "watching"
        else:
            status = f"{held or 'watching'}, by RAM, swap and major faults: pressure stall information (PSI) is not available (psi=0)"
        if self._plan.note:
            status += f"; the last valid settings are in force: {self._plan.note}"
        if status != self._status:
            self._status = status
            notify(STATUS=status)
        if now >= self._beat_at:
            self._beat_at = now + SLOW - TICK
            notify(WATCHDOG="1")


def _slept() -> float:
    """Return the seconds for which the machine has been suspended since boot."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
