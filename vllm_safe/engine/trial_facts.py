"""Which engines are untried: put in place while no card answered, and not started since.

Marked in a file of root's alone: the engines themselves belong to user vllm. A start that became ready is the trial; it is in the recorded
runs, so that nobody has to take the mark away at that moment: the next start does, and so does `vllm-safe install`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vllm_safe.contract.run_encoding import from_line, number, unpack_event, unpack_start
from vllm_safe.contract.untrusted_files import read_object
from vllm_safe.record.json_lines import read_lines
from vllm_safe.record.run_store import EVENTS_HEAD, SMALL_MOST

_MOST = 1 << 16  # bytes; an engine has fifty


def read_marks(path: Path) -> dict[str, float]:
    """When each of them was put in place, in Unix seconds, by the name of its folder."""
    return {folder: moment for folder, value in read_object(path, _MOST).items() if (moment := number(value)) is not None}


def tried_since(marks: Mapping[str, float], runs: Path) -> frozenset[str]:
    """Those that a model became ready with since they were marked. Where the runs may not be read: none, as far as can be seen."""
    tried: set[str] = set()
    try:
        for place in sorted(runs.glob("*/*")) if marks else ():
            start = unpack_start(read_object(place / "start.json", 2 * SMALL_MOST))
            engine = start.versions.get("engine", "") if start and not start.command else ""
            if start and engine in marks and start.time > marks[engine] and _became_ready(place):
                tried.add(engine)
    except OSError:
        pass
    return frozenset(tried)


def _became_ready(place: Path) -> bool:
    events = (unpack_event(from_line(line)) for line in read_lines(str(place), "events", 2 * EVENTS_HEAD))
    return any(event is not None and event.kind == "phase" and event.text == "ready" for event in events)
