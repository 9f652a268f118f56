"""Times in the time zone of the server, since a report may be read anywhere, next to the server's own logs."""

from __future__ import annotations

import time


def offset_at(moment: float) -> int:
    """Return the server's offset from UTC in seconds, positive to the east."""
    return time.localtime(moment).tm_gmtoff


def zone_at(moment: float) -> str:
    """Return the name of the server's time zone: "CET"."""
    return time.localtime(moment).tm_zone


def date_time(moment: float) -> str:
    """Return date and time: 2026-11-23 22:10:48."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))


def clock_time(moment: float, beside: float) -> str:
    """Return the time of day, 22:10:48, preceded by the date (11-23) unless that is the date of the moment `beside`."""
    form = "%H:%M:%S" if time.localtime(moment)[:3] == time.localtime(beside)[:3] else "%m-%d %H:%M:%S"
    return time.strftime(form, time.localtime(moment))
