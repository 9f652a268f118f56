"""Facts about the models at this moment, as any user may read them: systemd, cgroups, the main processes' states, the guard's records."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from vllm_safe.common.kernfs import (
    CGROUPS,
    MODELS_SLICE,
    SYSTEM_SLICES,
    parse_flat_keyed,
    parse_meminfo,
    parse_number,
    parse_stall_share,
    read_kernel_file,
)
from vllm_safe.common.paths import RUN
from vllm_safe.common.systemctl import show_properties
from vllm_safe.contract.recorded_run import Gpu
from vllm_safe.contract.run_encoding import from_line, mapping, number, text, unpack_gpus
from vllm_safe.contract.small_files import read_regular
from vllm_safe.contract.state_file import FRESH, GPU_FOLDER, STATE_FOLDER, cards_file, state_file
from vllm_safe.decide.demand_units import socket_of
from vllm_safe.decide.limits import prepare_of, unit_of
from vllm_safe.record.run_reader import read_state
from vllm_safe.status.demand_lines import DemandStatus
from vllm_safe.status.status_lines import GuardEvent, ModelStatus
from vllm_safe.status.top_screen import MachineMemory

_CGROUPS = Path(CGROUPS)
_PROPERTIES = ("Id", "ActiveState", "SubState", "Result", "StatusText", "MainPID", "ControlGroup", "StateChangeTimestampMonotonic")
_CARDS_MOST = 1 << 16  # bytes
_GUARD_MOST = 1 << 20  # bytes; the guard keeps its last 500 lines


def running_models(root: Path = _CGROUPS) -> tuple[str, ...]:
    """Return the models whose unit has a cgroup, whether or not they are in the configuration."""
    prefix, suffix = unit_of("\0").split("\0")
    try:
        names = sorted(path.name for path in (root / MODELS_SLICE).iterdir())
    except OSError:
        return ()
    return tuple(name[len(prefix) : -len(suffix)] for name in names if name.startswith(prefix) and name.endswith(suffix))


def read_model_status(
    names: Iterable[str],
    *,
    root: Path = _CGROUPS,
    states: Path = STATE_FOLDER,
    guard: Path = RUN / "guard",
    cards: Path = GPU_FOLDER,
) -> tuple[ModelStatus, ...]:
    """Read the status of each model. Values that cannot be read are None or empty."""
    wanted = list(names)
    units = show_properties([of(name) for name in wanted for of in (unit_of, socket_of, prepare_of)], _PROPERTIES) if wanted else {}
    moment, elapsed = time.time(), time.monotonic()
    system = {kind: _worst(_waits(root / part / f"{kind}.pressure") for part in SYSTEM_SLICES) for kind in ("memory", "io")}
    seen = []
    for name in wanted:
        unit, socket, prepare = (units.get(of(name), {}) for of in (unit_of, socket_of, prepare_of))
        preparing = prepare.get("ActiveState") == "activating"
        group = root / unit.get("ControlGroup", "").lstrip("/") if unit.get("ControlGroup") else None
        stat = parse_flat_keyed(read_kernel_file(f"{group}/memory.stat")) if group else {}
        changed = int((prepare if preparing else unit).get("StateChangeTimestampMonotonic") or 0) / 1e6
        state = read_state(states / state_file(name).name)
        current = state is not None and state.name == name and str(state.pid) == unit.get("MainPID")
        seen.append(
            ModelStatus(
                name=name,
                time=moment,
                active=unit.get("ActiveState", ""),
                sub=unit.get("SubState", ""),
                result=unit.get("Result", ""),
                status=unit.get("StatusText", ""),
                changed=moment - elapsed + changed if changed else None,
                state=state if current else None,
                memory=stat["anon"] + stat.get("shmem", 0) if "anon" in stat else None,
                memory_max=_limit(group, "memory.max"),
                swap=_limit(group, "memory.swap.current"),
                swap_max=_limit(group, "memory.swap.max"),
                memory_pressure=_waits(group / "memory.pressure") if group else None,
                io_pressure=_waits(group / "io.pressure") if group else None,
                os_memory_pressure=system["memory"],
                os_io_pressure=system["io"],
                gpus=_gpus(cards / cards_file(name).name, moment) if current else (),
                acts=_acts(guard / f"{name}.jsonl"),
                preparing=preparing,
                demand=DemandStatus(socket.get("ActiveState") == "active", prepare.get("StatusText", "") if preparing else ""),
            )
        )
    return tuple(seen)


def read_machine_memory(path: str = "/proc/meminfo") -> MachineMemory:
    """Read how much RAM and swap the machine has, and how much of it is left."""
    found = parse_meminfo(read_kernel_file(path))
    return MachineMemory(found.get("MemTotal"), found.get("MemAvailable"), found.get("SwapTotal"), found.get("SwapFree"))


def _limit(group: Path | None, name: str) -> int | None:
    return parse_number(read_kernel_file(f"{group}/{name}")) if group else None


def _waits(path: Path) -> float | None:
    """Read the share of the last ten seconds in which all tasks stalled (PSI full avg10), 0..1."""
    return parse_stall_share(read_kernel_file(str(path)))


def _worst(shares: Iterable[float | None]) -> float | None:
    return max((share for share in shares if share is not None), default=None)


def _gpus(path: Path, now: float) -> tuple[Gpu, ...]:
    """Read the recorder's last reading of all GPUs; () without a recent one."""
    try:
        fresh = now - path.stat(follow_symlinks=False).st_mtime < FRESH
    except OSError:
        return ()
    return unpack_gpus(from_line(read_regular(path, _CARDS_MOST) or b"")) if fresh else ()


def _acts(path: Path) -> tuple[GuardEvent, ...]:
    """Read the guard's actions on a model since its start, oldest first."""
    lines = (mapping(from_line(line)) for line in (read_regular(path, _GUARD_MOST) or b"").splitlines())
    return tuple(
        GuardEvent(moment, text(line.get("act")), text(line.get("text")))
        for line in lines
        if (moment := number(line.get("time"))) is not None
    )
