"""The link between main processes, over real connections on this machine."""

from __future__ import annotations

import math
import select
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from vllm_safe.contract.launch_file import Launch
from vllm_safe.launch import node_link
from vllm_safe.launch.node_group import NodeGroup
from vllm_safe.launch.node_link import NodeLink
from vllm_safe.launch.node_messages import Alive, Farewell
from vllm_safe.launch.node_route import Route

NODES = ("127.0.0.1", "localhost")  # both are this machine, by names that need no network
AGREED = {"the engine": "vllm 0.32.0"}
PATIENCE = 10.0


class Two:
    """The links of two machines, driven by one loop."""

    def __init__(self, port: int, agreed: dict[str, str]) -> None:
        launch = Launch("big", nodes=NODES, nodes_port=port)
        now = time.monotonic()
        launches = (launch, launch._replace(rank=1))
        self.port = port
        self.links = [NodeLink(it, NodeGroup(it, values, now), now) for it, values in zip(launches, (AGREED, agreed), strict=True)]
        self.first, self.second = (link.group for link in self.links)

    def until(self, holds: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not holds():
            now = time.monotonic()
            assert now < end, (self.first.waiting_for, self.second.waiting_for)
            for link in self.links:
                link.advance(now)
            reading = [handle for link in self.links for handle in link.reading]
            writing = [handle for link in self.links for handle in link.writing]
            select.select(reading, writing, (), 0.05)


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def two(port: int) -> Iterator[Two]:
    pair = Two(port, AGREED)
    yield pair
    for link in pair.links:
        link.close()


def test_they_meet_go_and_part(two: Two) -> None:
    first, second = two.links
    assert first.environment() == {}
    two.until(lambda: two.first.complete)
    expected = {"VLLM_HOST_IP": "127.0.0.1", "NCCL_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "lo"}
    assert (first.environment(), second.environment()) == (expected, expected)
    first.go()
    two.until(lambda: two.second.started)
    first.report(time.monotonic(), Alive("ready", 0.0, ""))
    two.until(lambda: two.second.first_serves)
    second.end(Farewell("localhost ended: no progress", never=False))
    two.until(lambda: two.first.verdict is not None)
    assert two.first.verdict == Farewell("localhost ended: no progress", never=False)
    first.end(two.first.verdict)
    assert (first.due, second.due) == (math.inf, math.inf)  # whatever is closed now, nobody connects again
    first.close()
    for _ in range(3):
        second.advance(time.monotonic() + 10)
        first.advance(time.monotonic() + 10)
    assert (first.reading, second.reading) == ((), ())


def test_a_connection_that_breaks_is_noticed_at_once(two: Two) -> None:
    two.until(lambda: two.first.complete)
    two.links[0].go()
    two.until(lambda: two.second.started)
    two.links[1].close()
    two.until(lambda: two.first.verdict is not None)
    assert two.first.verdict == Farewell("localhost ended without giving a reason", never=False)


def test_what_differs_reaches_both(port: int) -> None:
    two = Two(port, {"the engine": "vllm 0.31.0"})
    two.until(lambda: two.second.verdict is not None)
    expected = Farewell("the engine differs: vllm 0.32.0 on 127.0.0.1, vllm 0.31.0 on localhost", never=True)
    assert (two.first.verdict, two.second.verdict) == (expected, expected)
    for link in two.links:
        link.close()


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b'{"kind": "go"}\n', b"x" * (1 << 20)])
def test_one_that_does_not_speak_the_language_is_hung_up_on(two: Two, said: bytes) -> None:
    two.until(lambda: two.first.complete)
    with socket.create_connection(("127.0.0.1", two.port)) as stranger:
        stranger.setblocking(False)  # noqa: FBT003 - the name of the argument is only in its documentation
        sent = stranger.send(said)
        assert sent
        closed: list[bool] = []

        def is_closed() -> bool:
            try:
                closed.append(stranger.recv(1) == b"")
            except BlockingIOError:
                return False
            except ConnectionError:
                return True
            return closed[-1]

        two.until(is_closed)
    assert two.first.complete
    assert two.first.verdict is None


def test_an_address_of_another_machine_is_not_listened_to(port: int) -> None:
    """Its name is that of the machine, but not its address."""
    launch = Launch("big", nodes=("127.0.0.1", "127.9.9.9"), nodes_port=port)
    now = time.monotonic()
    link = NodeLink(launch, NodeGroup(launch, AGREED, now), now)
    link.advance(now)
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.settimeout(PATIENCE)
        link.advance(now)
        assert stranger.recv(1) == b""
    link.close()


def test_a_public_address_is_refused_unless_agreed_to(port: int) -> None:
    for public in (False, True):
        launch = Launch("big", nodes=("gpu1", "203.0.113.5"), nodes_port=port, nodes_public=public)
        group = NodeGroup(launch, AGREED, 0.0)
        link = NodeLink(launch, group, 0.0)
        link.advance(0.0)
        assert bool(group.verdict) is not public
        assert public or (group.verdict and group.verdict.never and "203.0.113.5, which is not private" in group.verdict.text)
        link.close()


def test_a_public_address_of_this_machine_is_refused_too(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_link, "find_route", lambda _: Route("203.0.113.5", "lan0"))
    launch = Launch("big", nodes=("127.0.0.1", "127.9.9.9"), nodes_port=port)
    group = NodeGroup(launch, AGREED, 0.0)
    link = NodeLink(launch, group, 0.0)
    link.advance(0.0)
    assert group.verdict
    assert group.verdict.text.startswith("127.0.0.1 has the address 203.0.113.5, which is not private")
    assert link.reading == ()
