"""The routes from this machine to the others that serve a model with it, and whether their ports can be reached."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vllm_safe.common.kernfs import read_kernel_file
from vllm_safe.launch.node_route import find_route

_PATIENCE = 5.0  # seconds for a connection


@dataclass(frozen=True)
class TriedPort:
    """An attempt to connect to a port. answer: "" if the connection was accepted, else the error."""

    port: int
    answer: str = ""
    refused: bool = False  # nothing listens there, or a firewall rejects the connection


@dataclass(frozen=True)
class NodeWay:
    """The route to one other machine. own: the address from which this machine sends there. problem: why there is none, or ""."""

    name: str
    address: str = ""  # IPv4
    own: str = ""
    interface: str = ""
    problem: str = ""
    tried: tuple[TriedPort, ...] = ()


def read_way(name: str) -> NodeWay:
    """Look up the address of a machine by its name, and the route to it."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError as error:
        return NodeWay(name, problem=f"its name has no address: {error.strerror or error}")
    address = next((str(row[4][0]) for row in found if row[0] == socket.AF_INET), "")
    if not address:
        return NodeWay(name, problem=f"its name has the IPv6 address {found[0][4][0]} and no IPv4 address, which is needed here")
    try:
        own, interface = find_route(address)
    except OSError as error:
        return NodeWay(name, address, problem=f"no route to {address}: {error.strerror or error}")
    return NodeWay(name, address, own, interface)


def try_ports(way: NodeWay, ports: Sequence[int]) -> NodeWay:
    """Connect to ports of the machine, one after the other, and close each connection at once. After one without an answer, stop."""
    tried: list[TriedPort] = []
    for port in ports if not way.problem else ():
        tried.append(_try_port(way.address, port))
        if tried[-1].answer and not tried[-1].refused:
            break
    return replace(way, tried=tuple(tried))


def _try_port(address: str, port: int) -> TriedPort:
    try:
        with socket.create_connection((address, port), timeout=_PATIENCE):
            return TriedPort(port)
    except TimeoutError:
        return TriedPort(port, f"no answer within {_PATIENCE:g} s")
    except OSError as error:
        return TriedPort(port, os.strerror(error.errno) if error.errno else str(error), refused=error.errno == errno.ECONNREFUSED)


def read_port_range(root: Path = Path("/")) -> str:
    """Return the range of ports that the kernel chooses from, as in "32768-60999"."""
    return "-".join(read_kernel_file(str(root / "proc/sys/net/ipv4/ip_local_port_range")).split())
