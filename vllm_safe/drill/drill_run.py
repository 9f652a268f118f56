"""The course of a drill: logins are timed on the idle machine, then beside the hog, then until they are as fast as before."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from vllm_safe.common.errors import Failure
from vllm_safe.drill import login_probes
from vllm_safe.drill.drill_decision import DrillSamples, Hog, HogPressure, bound_usual
from vllm_safe.drill.hog_unit import FILL, StartHog, memory, occupants

_TICK = 0.25  # seconds
RECOVERY = 60.0  # seconds; the drill does not wait longer for the machine to recover


@dataclass
class DrillProgress:
    """The measurements so far, in bytes, pages per second and seconds."""

    seconds: float
    idle: DrillSamples = field(default_factory=lambda: DrillSamples(()))
    drill: DrillSamples = field(default_factory=lambda: DrillSamples(()))
    ram: int = 0  # the most RAM that the hog had
    swap: int = 0  # the most swap that the hog had
    pages: float = 0.0  # pages that the hog touched per second
    touched: int = 0  # pages that the hog touched in total
    full: float = 0.0  # seconds in which the hog was near its limit
    since: float = -math.inf  # seconds since boot, when the hog began to press, if it did
    until: float = math.inf  # seconds since boot, when the hog was last seen
    ended: float | None = None  # seconds from the hog's start until it was last seen, if it ended early
    recovered: float | None = None  # seconds from the hog's end until a login was as fast as on the idle machine

    @property
    def pressed(self) -> HogPressure:
        """The activity of the hog."""
        lived = 1.0
        if self.ended is not None:
            lived = (self.until - self.since) / self.seconds if self.begun else 0.0
        return HogPressure(min(1.0, self.full / self.seconds), lived, self.touched)

    @property
    def begun(self) -> bool:
        """Whether the hog has been near its limit."""
        return self.since > -math.inf


Show = Callable[[str], None]


def run_drill(step: StartHog, hog: Hog, seconds: float, show: Show) -> DrillProgress:
    """Run the whole drill. The hog is gone at the end, whatever happens.

    Raises Failure if the hog cannot be started, if no login succeeds on the idle machine, or if a model is started meanwhile.
    """
    course = DrillProgress(seconds)
    found = {login_probes.LOGIN: login_probes.time_login}
    if login_probes.time_ssh() is not None:
        found[login_probes.SSH] = login_probes.time_ssh
    with login_probes.LoginWatch(found) as idle:
        _pass(min(30.0, max(10.0, seconds / 4)), lambda left: show(f"idle, {left:.0f} s to go: {_now(idle)}"))
    course.idle = DrillSamples(idle.samples, idle.failed)
    if not course.idle.values(login_probes.LOGIN):
        raise Failure(
            "no login succeeded on the idle machine: there is nothing to compare with", hint=f"Try: {' '.join(login_probes.LOGIN_COMMAND)}"
        )
    with login_probes.LoginWatch(found) as watch:
        try:
            step.run()
            _press(step, hog, course, lambda left: show(f"drill, {left:.0f} s to go: {_now(watch)}; hog {_gigabytes(*memory())}"))
        finally:
            step.stop()  # before the watch waits for the login that is still running
    course.drill = DrillSamples(watch.samples, watch.failed, course.since, course.until)
    course.recovered = _recover(bound_usual(course.idle), show)
    return course


def _press(step: StartHog, hog: Hog, course: DrillProgress, show: Callable[[float], None]) -> None:
    start = last = time.monotonic()
    end = start + FILL  # the requested time begins when the hog presses
    while True:
        now, (ram, swap) = time.monotonic(), memory()
        if step.ended or (course.begun and not ram):  # the hog's cgroup may be gone before systemd-run has ended
            course.ended = last - start
            break
        if others := occupants():
            raise Failure(f"{others[0]} was started, so the drill was ended", hint=f"Repeat the drill when {others[0]} is stopped.")
        course.ram, course.swap = max(course.ram, ram), max(course.swap, swap)
        if ram + swap >= hog.full:
            if course.begun:
                course.full += now - last  # not _TICK: a tick takes longer on a slow machine
            else:
                course.since, end = now, now + course.seconds
        last = now
        if now >= end:  # after a last check: the hog was alive until then
            break
        show(end - now)
        time.sleep(min(_TICK, max(0.0, end - time.monotonic())))
    course.until = last
    if step.touched:
        course.touched, course.pages = step.touched[-1], step.touched[-1] / len(step.touched)


def _recover(bound: float, show: Show) -> float | None:
    start = time.monotonic()
    while (spent := time.monotonic() - start) < RECOVERY:
        show(f"the hog has gone: waiting for a login within {bound:.1f} s")
        seconds = login_probes.time_login()
        if seconds is not None and seconds <= bound:
            return spent
    return None


def _pass(seconds: float, show: Callable[[float], None]) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        show(left)
        time.sleep(min(_TICK, left))


def _now(watch: login_probes.LoginWatch) -> str:
    last, worst, gap = watch.last(login_probes.LOGIN), watch.worst(login_probes.LOGIN), watch.worst(login_probes.GAP)
    words = [f"login {last:.1f} s" if last is not None else "login ...", *([f"worst {worst:.1f}"] if worst is not None else [])]
    return ", ".join([*words, *([f"gap {gap:.1f}"] if gap is not None else [])])


def _gigabytes(ram: int, swap: int) -> str:
    return f"{ram / (1 << 30):.1f}+{swap / (1 << 30):.1f} GiB"
