"""A pytest plugin that tells the runner, in lines of JSON, how many tests there are and how each went, with its processor time."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Sequence
from pathlib import Path

import pluggy
import pytest

DESCRIPTOR = "VLLM_SAFE_REPORTS"  # the variable with the number of the file descriptor to write to
PROCESSOR = "processor"  # the property of a report: seconds of processor time
_TICKS = os.sysconf("SC_CLK_TCK")


def processor_time(pid: int) -> float:
    """Seconds that a process, its living descendants and all that these have waited for have spent on processors.

    A descendant that ended counts through the parent that waited for it: in a container that is its PID 1.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        threads = [thread.name for thread in Path(f"/proc/{pid}/task").iterdir()]
        children = [child for thread in threads for child in Path(f"/proc/{pid}/task/{thread}/children").read_text().split()]
    except OSError:  # it has just ended
        return 0.0
    return sum(map(int, fields[11:15])) / _TICKS + sum(processor_time(int(child)) for child in children)  # utime stime cutime cstime


class Meter:
    """Adds to each report the processor time since the report before it, machines included; lives where the tests run."""

    def __init__(self) -> None:
        self._before = processor_time(os.getpid())

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pluggy.Result[pytest.TestReport], None]:
        """Note the time in the report."""
        report = (yield).get_result()
        now = processor_time(os.getpid())
        report.user_properties.append((PROCESSOR, max(0.0, now - self._before)))
        self._before = now


class Teller:
    """Writes what the runner is to know; lives in the process that the runner started."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        """Tell how many tests there are; each worker has the same."""
        self._tell({"total": len(ids)})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Tell how a phase of a test went."""
        text = report.longreprtext
        if isinstance(report.longrepr, tuple):  # a skip: file, line and reason
            text = str(report.longrepr[2])
        said = {
            "test": report.nodeid,
            "when": report.when,
            "outcome": report.outcome,
            "seconds": report.duration,
            "processor": dict(report.user_properties).get(PROCESSOR, 0.0),
            "text": text if report.outcome != "passed" else "",
        }
        self._tell(said)

    def _tell(self, said: dict[str, object]) -> None:
        line = json.dumps(said).encode() + b"\n"
        while line:
            line = line[os.write(self._descriptor, line) :]


def pytest_configure(config: pytest.Config) -> None:
    """Measure in the workers, tell from the process above them."""
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(Meter())
    elif DESCRIPTOR in os.environ:
        config.pluginmanager.register(Teller(int(os.environ[DESCRIPTOR])))
