"""Moments as the clock of the server shows them: a report may be read anywhere, beside the server's own logs."""

from __future__ import annotations

import time


def offset_at(moment: float) -> int:
    """Seconds that the server's clock is ahead of UTC."""
    return time.localtime(moment).tm_gmtoff


def zone_at(moment: float) -> str:
    """The name of the server's time zone: "CET"."""
    return time.localtime(moment).tm_zone


def date_time(moment: float) -> str:
    """Such as 2026-11-23 22:10:48."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))


def clock_time(moment: float, beside: float) -> str:
    """Such as 22:10:48; with the day before it where it is not that of the moment `beside`."""
    form = "%H:%M:%S" if time.localtime(moment)[:3] == time.localtime(beside)[:3] else "%m-%d %H:%M:%S"
    return time.strftime(form, time.localtime(moment))
