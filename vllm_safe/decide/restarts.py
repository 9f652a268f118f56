"""The limit on automatic restarts of a model."""

from __future__ import annotations

from collections.abc import Mapping

from vllm_safe.common.findings import Finding, failed
from vllm_safe.decide.limits import unit_of
from vllm_safe.host.start_facts import Starts

WINDOW = 3600.0  # seconds: older restarts of a model that was ready since then do not count; manual starts never count
# Seconds that each automatic restart waits, in addition to RestartSec= in vllm@.service. After the last of them the model is not restarted.
PAUSES = (0.0, 120.0, 600.0)
RESTARTS = len(PAUSES)


def limit_restarts(  # noqa: PLR0913 - each parameter is a fact from another source
    starts: Starts, counted: int, served: float | None, now: float, name: str, *, again: bool = False
) -> tuple[Starts, Finding | None]:
    """Return the log of starts including this one, and a finding if this is one automatic restart too many.

    served: when the model was last ready, in seconds since boot like `now`, or None. counted: systemd's NRestarts.
    systemd's own limit (StartLimitBurst=) counts manual starts too, and refuses them. NRestarts grows with automatic restarts only. A
    manual start resets it to 0, but only after this function is called: such a start is recorded as 0. A restart after which the model was
    never ready counts at any age: otherwise a load that fails after 40 minutes would be repeated for ever.

    again: a request starts a model that has failed. This counts as an automatic restart: otherwise its clients would repeat the failure for
    ever.
    """
    if again and counted <= starts.counted:
        counted = 0  # systemd counts this as a manual start
    elif counted <= starts.counted:
        return Starts(), None
    kept = tuple(moment for moment in starts.at if moment <= now and (now - WINDOW < moment or served is None or served < moment))
    if len(kept) < RESTARTS:
        return Starts(counted, (*kept, now)), None
    within = " within an hour" if now - WINDOW < kept[0] else ""
    what = f"{name} was restarted {RESTARTS} times{within} and ended again: it is not restarted any more"
    return Starts(counted, kept), failed(what, f"Find the cause with: vllm-safe why {name}. Then: systemctl start {unit_of(name)}")


def count_restart(  # noqa: PLR0913 - as in limit_restarts
    starts: Starts,
    units: Mapping[str, Mapping[str, str]],
    now: float,
    asleep: float,
    name: str,
    *,
    again: bool = False,
    elsewhere: bool = False,
) -> tuple[Starts, Finding | None]:
    """Call limit_restarts with the properties of the model's unit.

    now: seconds since boot. asleep: the part of them that systemd's monotonic times leave out. again: see limit_restarts.
    elsewhere: another machine was the cause of the end. That machine counts the restart, and this one waits for it.
    """
    unit = units.get(unit_of(name), {})
    if elsewhere and int(unit.get("NRestarts") or 0) > starts.counted:
        return Starts(int(unit["NRestarts"]), starts.at), None
    ready = int(unit.get("ActiveEnterTimestampMonotonic") or 0) / 1e6  # a Type=notify service is active from READY=1 on; 0: it never was
    return limit_restarts(starts, int(unit.get("NRestarts") or 0), ready + asleep if ready else None, now, name, again=again)
