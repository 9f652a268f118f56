"""Facts about running models and pending starts: systemd's units and jobs, and the launch files."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from vllm_safe.common.paths import starts_file
from vllm_safe.common.systemctl import show_matching
from vllm_safe.contract.launch_file import Launch, launch_file
from vllm_safe.contract.state_file import state_file
from vllm_safe.contract.untrusted_files import read_state
from vllm_safe.host.start_facts import read_starts

_TIMES = ("ExecMainStartTimestampMonotonic", "ActiveEnterTimestampMonotonic")
_PROPERTIES = ("Id", "ActiveState", "SubState", "Result", "NRestarts", "Job", *_TIMES)
_KINDS = ("vllm@", "vllm-safe-prepare@", "vllm-on-demand@")


@dataclass(frozen=True)
class UnitFacts:
    """The state of a unit in systemd. job: the ID of its queued or running job, or 0. Times are seconds since boot, 0 for never."""

    active: str = "inactive"
    sub: str = "dead"
    result: str = "success"
    job: int = 0
    begun: float = 0.0  # when its main process was started; the unit may have been active for longer, if it was restarted
    ready: float = 0.0  # when it was last ready
    restarts: int = 0  # systemd's count of automatic restarts

    @property
    def has_processes(self) -> bool:
        """Whether it is running, starting or stopping. A unit that waits for its automatic restart has no processes."""
        return self.active not in {"inactive", "failed"} and not self.sub.startswith("auto-restart")


@dataclass(frozen=True)
class LaunchFacts:
    """The last launch file of a model. written: seconds since boot. restarts: systemd's count of automatic restarts at that time."""

    launch: Launch
    written: float = 0.0
    restarts: int = 0


@dataclass(frozen=True)
class DemandFacts:
    """The facts about all models, by name. now: seconds since boot, by systemd's clock. used: Unix time of the last request, if known."""

    now: float = 0.0
    models: Mapping[str, UnitFacts] = field(default_factory=dict)
    preparing: Mapping[str, UnitFacts] = field(default_factory=dict)
    proxies: Mapping[str, UnitFacts] = field(default_factory=dict)
    launches: Mapping[str, LaunchFacts] = field(default_factory=dict)
    used: Mapping[str, float] = field(default_factory=dict)

    def model(self, name: str) -> UnitFacts:
        """Return the unit of a model."""
        return self.models.get(name, UnitFacts())


def read_demand_facts() -> DemandFacts:
    """Read the facts. They are empty if systemd is not running."""
    found: dict[str, dict[str, UnitFacts]] = {kind: {} for kind in _KINDS}
    for shown in show_matching([f"{kind}*.service" for kind in _KINDS], _PROPERTIES):
        kind, _, rest = shown.get("Id", "").partition("@")
        found.get(f"{kind}@", {})[rest.removesuffix(".service")] = _unit(shown)
    models, preparing, proxies = (found[kind] for kind in _KINDS)
    return DemandFacts(
        now=time.monotonic(),
        models=models,
        preparing=preparing,
        proxies=proxies,
        launches={name: facts for name in models if (facts := _launch(name))},
        used={name: state.used for name in models if (state := read_state(state_file(name))) and state.used is not None},
    )


def _unit(shown: Mapping[str, str]) -> UnitFacts:
    begun, ready = (int(shown.get(key) or 0) / 1e6 for key in _TIMES)
    job = shown.get("Job", "")
    return UnitFacts(
        active=shown.get("ActiveState", ""),
        sub=shown.get("SubState", ""),
        result=shown.get("Result", ""),
        job=int(job) if job.isdecimal() else 0,
        begun=begun,
        ready=ready,
        restarts=int(shown.get("NRestarts") or 0),
    )


def _launch(name: str) -> LaunchFacts | None:
    path = launch_file(name)
    with suppress(OSError, ValueError):
        written = path.stat().st_mtime - time.time() + time.monotonic()
        counted = read_starts(starts_file(name)).counted
        return LaunchFacts(Launch.from_json(path.read_text(encoding="utf-8")), written, counted)
    return None
