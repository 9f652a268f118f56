"""Address lookup for the hosts of requests. A name is looked up once, in a thread, since getaddrinfo(3) may block for minutes."""

from __future__ import annotations

import socket
from typing import NamedTuple
from urllib.parse import urlsplit

Address = tuple[int, tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]]  # address family and sockaddr, as for connect(2)


class Resolution(NamedTuple):
    """The result of a lookup. addresses: in the order in which to try them. error: the reason if there are none."""

    addresses: tuple[Address, ...] = ()
    error: str = ""


class Resolver:
    """A cache of lookups: each name is looked up until it is found once, so that a later outage of DNS changes nothing."""

    def __init__(self) -> None:
        self._found: dict[tuple[bytes, int], Resolution] = {}
        self._under_way: set[tuple[bytes, int]] = set()

    def look_up(self, url: str) -> Resolution:
        """Return the known addresses of the host of `url` without blocking; start a lookup of its name if that is necessary."""
        parts = urlsplit(url)
        # The host is passed as bytes: for a str, getaddrinfo loads the tables of international names (1 MB), even for 127.0.0.1.
        where = (parts.hostname or "").encode(), parts.port or 80
        found = self._found.get(where, Resolution(error="its name is being looked up"))
        if found.addresses or where in self._under_way:
            return found
        numeric = _resolve(where, socket.AI_NUMERICHOST)
        if numeric.addresses:
            self._found[where] = numeric
            return numeric
        from threading import Thread  # noqa: PLC0415 - memory that is only needed for a host name

        self._under_way.add(where)
        try:
            Thread(target=self._look_up, args=(where,), daemon=True).start()
        except RuntimeError:  # limits.tasks_max has been reached: the next request tries again
            self._under_way.discard(where)
        return found

    def _look_up(self, where: tuple[bytes, int]) -> None:
        self._found[where] = _resolve(where)
        self._under_way.discard(where)


def _resolve(where: tuple[bytes, int], flags: int = 0) -> Resolution:
    try:
        rows = socket.getaddrinfo(*where, type=socket.SOCK_STREAM, flags=flags)
    except OSError as error:
        return Resolution(error=error.strerror or str(error))
    return Resolution(tuple((family, address) for family, _, _, _, address in rows))
