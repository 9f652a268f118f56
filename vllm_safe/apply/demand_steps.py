"""The steps that open the sockets of models on demand, and those that close them, which need no configuration."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vllm_safe.apply.unit_steps import DaemonReload, RemoveDropin, StartSocket, StopUnits, WriteDropin
from vllm_safe.common import paths
from vllm_safe.common.file_steps import RemoveFile, WriteFile
from vllm_safe.common.steps import Step
from vllm_safe.contract.gateway_file import GATEWAY_FILE, GatewayFile, demand_socket
from vllm_safe.decide.demand_units import DROPIN, TEMPLATE, DemandUnits, proxy_of, socket_of


@dataclass(frozen=True)
class DemandPlaces:
    """The paths that are written to: the folder of the units, the gateway's settings, and the copy of its key."""

    units: Path = paths.UNITS
    settings: Path = Path(GATEWAY_FILE)
    key: Path = paths.GATEWAY_CREDENTIAL


_HERE = DemandPlaces()


def demand_steps(
    wanted: Iterable[DemandUnits], gateway: GatewayFile, active: Mapping[str, bool], key: str | None = None, at: DemandPlaces = _HERE
) -> tuple[Step, ...]:
    """Return the steps from the present sockets to the wanted ones. active: whether each socket unit listens. key: the gateway's key.

    A socket that is up to date is left alone, with the connections that wait there.
    """
    folder = at.units
    units = {one.name: one for one in wanted}
    there = _present(folder)
    gone = [name for name in there if name not in units]
    changed = [name for name, one in units.items() if there.get(name) != dict(one.dropins)]
    closed = [*gone, *(name for name in changed if name in there or active.get(socket_of(name)))]
    return (
        *_close(closed),
        *_remove(folder, gone),
        *(WriteDropin(folder / f"{unit}.d" / DROPIN, text) for name in changed for unit, text in units[name].dropins),
        *((DaemonReload(),) if gone or changed else ()),
        *_file_steps(at.settings, WriteFile(at.settings, gateway.to_json(), mode=0o640, group=paths.GATEWAY)),
        *_file_steps(at.key, _key_file(at.key, key)),
        *(_open(one) for name, one in units.items() if name in closed or not active.get(socket_of(name))),
    )


def undo_demand_steps(at: DemandPlaces = _HERE) -> tuple[Step, ...]:
    """Return the steps that close all sockets and remove all files that were written. Running models are not affected."""
    there = _present(at.units)
    return (
        *_close(there),
        *_remove(at.units, there),
        *((DaemonReload(),) if there else ()),
        *_file_steps(at.settings, None),
        *_file_steps(at.key, None),
    )


def _present(folder: Path) -> dict[str, dict[str, str]]:
    """Return the present drop-ins, by model and unit."""
    found: dict[str, dict[str, str]] = {}
    for path in sorted(folder.glob(f"{TEMPLATE}*.d/{DROPIN}")):
        unit = path.parent.name.removesuffix(".d")
        name = unit.removeprefix(TEMPLATE).rpartition(".")[0]
        found.setdefault(name, {})[unit] = path.read_text()
    return found


def _open(units: DemandUnits) -> Step:
    return StartSocket(socket_of(units.name), f"{units.listen} and {demand_socket(units.name)}")


def _close(names: Iterable[str]) -> Iterator[Step]:
    """Yield the step that closes sockets. It stops the proxies, too: while one runs, systemd refuses to open its socket again."""
    if units := [unit for name in names for unit in (socket_of(name), proxy_of(name))]:
        yield StopUnits(tuple(units))


def _remove(folder: Path, names: Iterable[str]) -> Iterator[Step]:
    yield from (RemoveDropin(folder / f"{unit}.d" / DROPIN) for name in names for unit in (socket_of(name), proxy_of(name)))


def _key_file(path: Path, key: str | None) -> WriteFile | None:
    """Return the step that writes the gateway's key. If the key was removed from the configuration, the file is left empty.

    If the file were removed, systemd would keep for ExecStart= the credential that it had loaded for ExecStartPre= of the same start.
    """
    return WriteFile(path, key or "\n", mode=0o600) if key is not None or os.path.lexists(path) else None


def _file_steps(path: Path, step: WriteFile | None) -> Iterator[Step]:
    """Yield the step that writes or removes a file, unless nothing would change."""
    try:
        content = path.read_text()
    except FileNotFoundError:
        content = None
    except PermissionError:  # a dry run without root
        content = ""
    if step is not None and step.content != content:
        yield step
    elif step is None and content is not None:
        yield RemoveFile(path)
