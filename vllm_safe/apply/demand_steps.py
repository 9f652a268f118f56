"""The steps that open the sockets of models on demand, and that close them: the latter need no configuration."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from vllm_safe.apply.unit_steps import DaemonReload, RemoveDropin, StartSocket, StopUnits, WriteDropin
from vllm_safe.common import paths
from vllm_safe.common.file_steps import RemoveFile, WriteFile
from vllm_safe.common.steps import Step
from vllm_safe.contract.gateway_file import GATEWAY_FILE, GatewayFile, demand_socket
from vllm_safe.decide.demand_units import DROPIN, TEMPLATE, DemandUnits, proxy_of, socket_of


def demand_steps(
    wanted: Iterable[DemandUnits],
    gateway: GatewayFile,
    active: Mapping[str, bool],
    *,
    folder: Path = paths.UNITS,
    file: Path = Path(GATEWAY_FILE),
) -> tuple[Step, ...]:
    """Return the steps from the present sockets to the wanted ones. active: whether each socket unit listens.

    A socket that is as it should be is left alone, with the connections that wait there.
    """
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
        *_gateway_file(gateway, file),
        *(_open(one) for name, one in units.items() if name in closed or not active.get(socket_of(name))),
    )


def undo_demand_steps(*, folder: Path = paths.UNITS, file: Path = Path(GATEWAY_FILE)) -> tuple[Step, ...]:
    """Return the steps that close all sockets and remove what was written. Models that run go on."""
    there = _present(folder)
    return (
        *_close(there),
        *_remove(folder, there),
        *((DaemonReload(),) if there else ()),
        *((RemoveFile(file),) if file.exists() else ()),
    )


def _present(folder: Path) -> dict[str, dict[str, str]]:
    """Return the drop-ins that there are, by model and unit."""
    found: dict[str, dict[str, str]] = {}
    for path in sorted(folder.glob(f"{TEMPLATE}*.d/{DROPIN}")):
        unit = path.parent.name.removesuffix(".d")
        name = unit.removeprefix(TEMPLATE).rpartition(".")[0]
        found.setdefault(name, {})[unit] = path.read_text()
    return found


def _open(units: DemandUnits) -> Step:
    return StartSocket(socket_of(units.name), f"{units.listen} and {demand_socket(units.name)}")


def _close(names: Iterable[str]) -> Iterator[Step]:
    """Yield the step that closes sockets. While the proxy runs, systemd would refuse to open the socket again."""
    if units := [unit for name in names for unit in (socket_of(name), proxy_of(name))]:
        yield StopUnits(tuple(units))


def _remove(folder: Path, names: Iterable[str]) -> Iterator[Step]:
    yield from (RemoveDropin(folder / f"{unit}.d" / DROPIN) for name in names for unit in (socket_of(name), proxy_of(name)))


def _gateway_file(gateway: GatewayFile, file: Path) -> Iterator[Step]:
    text = gateway.to_json()
    try:
        if file.read_text() == text:
            return
    except OSError:
        pass
    yield WriteFile(file, text, mode=0o640, group=paths.GATEWAY)
