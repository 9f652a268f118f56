"""Host names: looked up once, without blocking."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from vllm_safe.launch.resolver import Resolution, Resolver

PATIENCE = 10.0  # seconds: a test that takes longer has failed
ROWS = [
    (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 8000, 0, 0)),
    (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 8000)),
]
ADDRESSES = ((socket.AF_INET6, ("::1", 8000, 0, 0)), (socket.AF_INET, ("127.0.0.1", 8000)))


class Names:
    """A resolver that answers on command."""

    def __init__(self) -> None:
        self.answers, self.asked, self.go = True, 0, threading.Event()

    def getaddrinfo(self, host: bytes, port: int, *, type: int, flags: int) -> object:  # noqa: A002 - the name is that of the socket module
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        assert (host, port, type) == (b"server", 8000, socket.SOCK_STREAM)
        self.asked += 1
        assert self.go.wait(PATIENCE)
        if not self.answers:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return ROWS


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    names = Names()
    monkeypatch.setattr(socket, "getaddrinfo", names.getaddrinfo)
    yield names
    names.go.set()


def until(resolver: Resolver, right: Callable[[Resolution], bool]) -> Resolution:
    end = time.monotonic() + PATIENCE
    while not right(found := resolver.look_up("http://server:8000/health")):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


def test_nobody_waits_for_a_name_and_it_is_looked_up_once(names: Names) -> None:
    resolver = Resolver()
    for _ in range(3):
        assert resolver.look_up("http://server:8000/health") == Resolution(error="its name is being looked up")
    names.go.set()
    assert until(resolver, lambda found: bool(found.addresses)).addresses == ADDRESSES
    names.answers = False  # an outage later on
    assert resolver.look_up("http://server:8000/metrics").addresses == ADDRESSES
    assert names.asked == 1


def test_a_name_that_is_not_found_is_looked_up_again(names: Names) -> None:
    resolver, names.answers = Resolver(), False
    names.go.set()
    assert until(resolver, lambda found: "Temporary" in found.error) == Resolution(error="Temporary failure in name resolution")
    names.answers = True
    assert until(resolver, lambda found: bool(found.addresses)).addresses == ADDRESSES


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000/health", "http://[::1]:8000/health"])
def test_an_address_is_known_at_once(url: str) -> None:
    (address,) = Resolver().look_up(url).addresses
    assert address in ADDRESSES


def test_no_thread_to_be_had_is_no_end(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    resolver = Resolver()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        assert resolver.look_up("http://server:8000/health").addresses == ()
    names.go.set()
    assert until(resolver, lambda found: bool(found.addresses)).addresses == ADDRESSES
