"""Facts about untried engines: those put in place while no card responded, and not started since.

The marks are in a file that only root can write, since the engines themselves belong to user vllm. A start that became ready counts as
the trial. It is in the recorded runs, so that the mark need not be removed at that moment: the next start or `vllm-safe install` does it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vllm_safe.contract.run_encoding import from_line, number, unpack_event, unpack_start
from vllm_safe.contract.untrusted_files import read_object
from vllm_safe.record.json_lines import read_lines
from vllm_safe.record.run_store import EVENTS_HEAD, SMALL_MOST

_MOST = 1 << 16  # bytes; the mark of an engine takes fifty


def read_marks(path: Path) -> dict[str, float]:
    """Read when each untried engine was put in place, in Unix seconds, by the name of its folder."""
    return {folder: moment for folder, value in read_object(path, _MOST).items() if (moment := number(value)) is not None}


def tried_since(marks: Mapping[str, float], runs: Path) -> frozenset[str]:
    """Return the marked engines with which a model became ready since; none if the caller may not read the runs."""
    tried: set[str] = set()
    try:
        for run in sorted(runs.glob("*/*")) if marks else ():
            start = unpack_start(read_object(run / "start.json", 2 * SMALL_MOST))
            engine = start.versions.get("engine", "") if start and not start.command else ""
            if start and engine in marks and start.time > marks[engine] and _became_ready(run):
                tried.add(engine)
    except OSError:
        pass
    return frozenset(tried)


def _became_ready(run: Path) -> bool:
    events = (unpack_event(from_line(line)) for line in read_lines(str(run), "events", 2 * EVENTS_HEAD))
    return any(event is not None and event.kind == "phase" and event.text == "ready" for event in events)
