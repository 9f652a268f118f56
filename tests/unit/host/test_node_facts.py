"""The routes to other machines, and attempts to connect to them. This machine stands for the other one."""

from __future__ import annotations

import socket

import pytest

from vllm_safe.host.node_facts import NodeWay, TriedPort, read_way, try_ports


def test_a_name_with_an_address_has_a_route() -> None:
    assert read_way("localhost") == NodeWay("localhost", "127.0.0.1", "127.0.0.1", "lo")


def test_a_name_without_an_address_is_a_problem() -> None:
    assert read_way("no-such-machine.invalid").problem.startswith("its name has no address: ")


def test_a_name_with_an_ipv6_address_alone_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    row = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fd00::1", 0, 0, 0))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [row])
    assert read_way("gpu1").problem == "its name has the IPv6 address fd00::1 and no IPv4 address, which is needed here"


def test_open_and_closed_ports_are_told_apart() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        ports = server.getsockname()[1], closed.getsockname()[1]
        tried = try_ports(read_way("localhost"), ports).tried
    assert tried == (TriedPort(ports[0]), TriedPort(ports[1], "Connection refused", refused=True))


def test_nothing_is_tried_without_a_route_or_after_a_port_without_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert try_ports(NodeWay("gpu1", problem="no route"), (1, 2)).tried == ()

    def wait(*_: object, **__: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", wait)
    assert try_ports(NodeWay("gpu1", "10.0.0.1"), (1, 2)).tried == (TriedPort(1, "no answer within 5 s"),)
