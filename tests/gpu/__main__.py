"""Run the scenarios: `python3 -m tests.gpu [--env NAME=VALUE] [--out FILE] [SCENARIO ...]`, as root, in a throwaway Debian.

Scenarios that need the GPUs for themselves run one after the other, then the others together. Exit status: 1 if any failed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from pathlib import Path

from tests.gpu.box import Box, Figures, Wrong, cards, make_models, run
from tests.gpu.scenarios import Scenario, scenarios

AT_ONCE = 5  # each scenario has four processes, whose imports take ten seconds


def main() -> int:
    """Run the scenarios. Return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="these alone")
    parser.add_argument("--list", action="store_true", help="say which there are")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="for every model: what this machine needs")
    parser.add_argument("--out", type=Path, help="append a line of JSON for each")
    parser.add_argument("--seconds", type=float, default=3600.0, help="begin none after this time")
    given = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("it starts and stops units: run it as root")
    there = len(cards())
    known = scenarios(there)
    if given.list:
        print("\n".join(scenario.name for scenario in known))
        return 0
    if unknown := set(given.scenarios) - {scenario.name for scenario in known}:
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}; --list shows them")
    wanted = [scenario for scenario in known if not given.scenarios or scenario.name in given.scenarios]
    return _Runner(wanted, there, dict(item.split("=", 1) for item in given.env), given.out, given.seconds).run()


class _Runner:
    def __init__(self, wanted: list[Scenario], there: int, env: dict[str, str], out: Path | None, seconds: float) -> None:
        self._scenarios, self._there, self._env, self._out = wanted, there, env, out
        self._until = time.monotonic() + seconds
        self._lock = threading.Lock()
        self._wrong = 0

    def run(self) -> int:
        make_models()
        for swap in sorted({scenario.swap for scenario in self._scenarios}):
            batch = [scenario for scenario in self._scenarios if scenario.swap == swap]
            models = [model for scenario in batch for model in scenario.models]
            box = Box(models, self._env, {"size": swap or "none"})
            box.configure()
            for scenario in batch:
                if scenario.alone:
                    self._one(scenario, box)
            self._together([scenario for scenario in batch if not scenario.alone], box)
            run(["systemctl", "stop", *(f"vllm@{model.name}" for model in models)], check=False)
        return int(self._wrong > 0)

    def _together(self, scenarios: Iterable[Scenario], box: Box) -> None:
        left = iter(list(scenarios))
        lock = threading.Lock()

        def work() -> None:
            while True:
                with lock:
                    scenario = next(left, None)
                if scenario is None:
                    return
                self._one(scenario, box)

        threads = [threading.Thread(target=work) for _ in range(AT_ONCE)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _one(self, scenario: Scenario, box: Box) -> None:
        start = time.monotonic()
        if scenario.gpus > self._there:
            self._say(scenario, "SKIP", start, {"why": f"needs {scenario.gpus} cards, and {self._there} are there"})
            return
        if start > self._until:
            self._say(scenario, "SKIP", start, {"why": "no time was left"})
            return
        figures: Figures = {}
        try:
            figures = scenario.show(box)
            outcome = "PASS"
        except Wrong as wrong:
            outcome, figures = "FAIL", {"why": str(wrong)}
        except Exception:  # noqa: BLE001 - the other scenarios still run after one has failed
            outcome, figures = "FAIL", {"why": traceback.format_exc()[-1500:]}
        self._keep_journals(scenario)
        if outcome == "FAIL":
            run(["systemctl", "stop", *(f"vllm@{model.name}" for model in scenario.models)], check=False)
        self._say(scenario, outcome, start, figures)

    def _keep_journals(self, scenario: Scenario) -> None:
        if self._out:
            units = {model.name: f"vllm@{model.name}" for model in scenario.models} | {unit: unit for unit in scenario.units}
            for name, unit in units.items():
                log = run(["journalctl", "--no-pager", "--output=short-precise", "--unit", unit], check=False)
                self._out.with_name(f"{name}.log").write_text(log[-400_000:])

    def _say(self, scenario: Scenario, outcome: str, start: float, figures: Figures) -> None:
        took = round(time.monotonic() - start, 1)
        with self._lock:
            self._wrong += outcome == "FAIL"
            print(f"{outcome} {scenario.name} ({took} s) {json.dumps(figures, ensure_ascii=False)}", flush=True)
            if self._out:
                with self._out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"scenario": scenario.name, "outcome": outcome, "seconds": took, **figures}) + "\n")


if __name__ == "__main__":
    sys.exit(main())
