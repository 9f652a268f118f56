"""The route from this machine to another one. Standard library only."""

from __future__ import annotations

import os
import socket
import struct
from typing import NamedTuple

_GETROUTE, _REQUEST, _ERROR = 26, 1, 2  # rtnetlink(7), netlink(7)
_DESTINATION, _INTERFACE = 1, 4  # attributes of a route
_PRIVATE = (  # networks that no router on the internet forwards to: RFC 1918, RFC 6598 (also Tailscale's), link-local, loopback
    ("10.0.0.0", 8),
    ("172.16.0.0", 12),
    ("192.168.0.0", 16),
    ("100.64.0.0", 10),
    ("169.254.0.0", 16),
    ("127.0.0.0", 8),
)


class Route(NamedTuple):
    """A route to another machine. own: the address from which this machine sends there."""

    own: str
    interface: str


def find_route(address: str) -> Route:
    """Return the route to an IPv4 address, as `ip route get` does. Raises OSError if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))  # sends nothing
        own = probe.getsockname()[0]
    return Route(own, socket.if_indextoname(_interface_to(address)))


def _interface_to(address: str) -> int:
    """Ask the kernel for the interface of a route. Raises OSError."""
    to = struct.pack("HH4s", 8, _DESTINATION, socket.inet_aton(address))
    route = struct.pack("BBBBBBBBI", socket.AF_INET, 32, 0, 0, 0, 0, 0, 0, 0)
    question = struct.pack("IHHII", 16 + len(route) + len(to), _GETROUTE, _REQUEST, 1, 0) + route + to
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        kernel.settimeout(5)
        kernel.send(question)
        answer = kernel.recv(1 << 14)
    kind = struct.unpack_from("H", answer, 4)[0]
    if kind == _ERROR:
        code = -struct.unpack_from("i", answer, 16)[0]
        raise OSError(code, os.strerror(code))
    at = 16 + len(route)
    while at + 4 <= len(answer):
        length, name = struct.unpack_from("HH", answer, at)
        if name == _INTERFACE:
            return int(struct.unpack_from("I", answer, at + 4)[0])
        at += max(4, (length + 3) & ~3)
    raise OSError(0, "the route has no interface")


def is_private_address(address: str) -> bool:
    """Return whether an IPv4 address is one of a private network."""
    number = int.from_bytes(socket.inet_aton(address))
    return any(number >> 32 - bits == int.from_bytes(socket.inet_aton(network)) >> 32 - bits for network, bits in _PRIVATE)
