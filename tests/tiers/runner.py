"""One pytest for each tier, as many at once as there are lanes; what they say comes out here, a whole line at a time."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import IO

from tests.beds import nspawn, vm
from tests.beds.machine import TIED
from tests.tiers.plan import Tier, command, lanes
from tests.tiers.reports import DESCRIPTOR
from tests.tiers.results import Finished, Results, costs, progress, short

REPOSITORY = Path(__file__).parents[2]
GRACE = 30.0  # seconds that a tier has to take its machines down when it is interrupted
PATIENCE = 60.0  # seconds between two lines that say how far it is, when no test ends
WELL = (0, 1)  # pytest's own exit status when all tests could run: none failed, some failed


class Running:
    """The pytest of a tier, in a session of its own: a Ctrl-C on the terminal reaches it through `interrupt()` alone."""

    def __init__(self, tier: Tier, log: IO[bytes]) -> None:
        self.tier = tier
        self.log = log
        reader, writer = os.pipe()
        self.reports = os.fdopen(reader, "rb", buffering=0)
        try:
            self.process = subprocess.Popen(
                [*TIED, *command(tier)],
                cwd=REPOSITORY,
                env={**os.environ, **tier.environment, DESCRIPTOR: str(writer)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(writer,),
                start_new_session=True,
            )
        finally:
            os.close(writer)
        self._rest = b""

    def read(self) -> list[dict[str, object]] | None:
        """Return what has been reported since the last call; None once the process has closed its end."""
        block = os.read(self.reports.fileno(), 1 << 16)
        if not block:
            return None
        *lines, self._rest = (self._rest + block).split(b"\n")
        return [json.loads(line) for line in lines]

    def interrupt(self) -> None:
        """Have pytest take down its machines and end."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGINT)

    def end(self, until: float) -> list[dict[str, object]]:
        """Wait for the end until the monotonic time `until`, then kill what is left of the session. Return what was still reported."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=max(0.0, until - time.monotonic()))
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.set_blocking(self.reports.fileno(), False)
        left: list[dict[str, object]] = []
        with suppress(BlockingIOError):
            while (lines := self.read()) is not None:
                left += lines
        self.reports.close()
        return left


class Runner:
    """All lanes from their first tier to their last."""

    def __init__(self, tiers: Sequence[Tier], folder: Path) -> None:
        self._started = time.monotonic()
        self._folder = folder
        self._waiting = lanes(tiers)
        self._results = {tier.name: Results() for tier in tiers}
        self._broken: list[str] = []  # tiers whose pytest itself failed
        self._running: list[Running] = []
        self._selector = selectors.DefaultSelector()

    def run(self) -> int:
        """Run everything. Returns the exit status: 0 only if every test of every tier ran and none failed."""
        try:
            for lane in self._waiting:
                self._start_next(lane)
            while self._running:
                ready = self._selector.select(PATIENCE)
                if not ready:
                    self._say("")
                for key, _ in ready:
                    self._take(key.data)
        except KeyboardInterrupt:
            print("interrupted: taking down all machines", flush=True)
            for running in self._running:
                running.interrupt()
            return 130
        finally:
            until = time.monotonic() + GRACE
            for running in self._running:
                for line in running.end(until):
                    self._results[running.tier.name].hear(line)
            self._selector.close()
            self._conclude()
        return 1 if self._broken or any(results.failed for results in self._results.values()) else 0

    def _start_next(self, lane: list[Tier]) -> None:
        if lane:
            tier = lane.pop(0)
            log = (self._folder / tier.name).open("w+b")
            running = Running(tier, log)
            self._running.append(running)
            self._selector.register(running.reports, selectors.EVENT_READ, (running, lane))

    def _take(self, of: tuple[Running, list[Tier]]) -> None:
        running, lane = of
        name = running.tier.name
        said = running.read()
        for line in said or ():
            if test := self._results[name].hear(line):
                self._tell(name, test)
        if said is None:
            self._selector.unregister(running.reports)
            self._running.remove(running)
            running.end(time.monotonic() + GRACE)
            self._check(running)
            self._start_next(lane)

    def _tell(self, tier: str, test: Finished) -> None:
        mark = test.outcome if test.outcome == "passed" else test.outcome.upper()
        reason = f": {test.text}" if test.outcome == "skipped" else ""
        self._say(f"{mark:6}  {tier} {short(test.test)}, {test.seconds:.1f} s (processor {test.processor:.1f} s){reason}")
        if test.outcome == "failed":
            print(f"{test.text}\n{'-' * 79}", flush=True)

    def _say(self, what: str) -> None:
        print(f"[{progress(self._results, time.monotonic() - self._started)}]  {what}".rstrip(), flush=True)

    def _check(self, running: Running) -> None:
        """Note it, with all that pytest printed, if not every test of the tier has run."""
        name = running.tier.name
        results = self._results[name]
        status = running.process.returncode
        whole = status in WELL and results.total == len(results.finished) > 0
        if not whole:
            self._broken.append(name)
            running.log.seek(0)
            print(f"{name}: pytest ended with status {status}\n{running.log.read().decode(errors='replace')}", flush=True)
        running.log.close()

    def _conclude(self) -> None:
        print(*costs(self._results), sep="\n")
        for name, results in self._results.items():
            for test in results.failed:
                print(f"FAILED {name} {test.test}: {test.reason}")
        print(f"{', '.join(f'{name}: {results.counts()}' for name, results in self._results.items())}", end="; ")
        print(f"{(time.monotonic() - self._started) / 60:.1f} min", flush=True)


def run(tiers: Sequence[Tier]) -> int:
    """Run `tiers`. Returns the exit status; SIGTERM and SIGHUP count as a Ctrl-C."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):  # a shell ignores the last for what it starts in the background
        signal.signal(number, _interrupt)
    with tempfile.TemporaryDirectory(prefix="vllm-safe-tiers-") as folder:
        try:
            return Runner(tiers, Path(folder)).run()
        finally:
            if os.geteuid() == 0:  # others have no beds
                nspawn.sweep()
                vm.sweep()


def _interrupt(number: int, _: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # one is enough: what follows takes its time
    raise KeyboardInterrupt
