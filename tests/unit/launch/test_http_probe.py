"""HTTP probes: every way in which a server may answer a request, or fail to."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable

import pytest

from vllm_safe.launch.http_probe import TIMEOUT, Answer, Probe
from vllm_safe.launch.resolver import Address, Resolution, Resolver


def _ask(url: str, *addresses: Address) -> Answer:
    probe = Probe(url, Resolution(addresses) if addresses else Resolver().look_up(url), 0.0)
    while probe.answer is None:
        assert any(select.select(probe.reading, probe.writing, (), 10)), "the probe waits for nothing"
        probe.advance(0.0)
    assert probe.reading == probe.writing == ()
    return probe.answer


def _serve(answer: Callable[[socket.socket], None]) -> int:
    server = socket.create_server(("127.0.0.1", 0))

    def _once() -> None:
        with server, server.accept()[0] as client:
            answer(client)

    threading.Thread(target=_once, daemon=True).start()
    port: int = server.getsockname()[1]
    return port


def _says(*chunks: bytes) -> Callable[[socket.socket], None]:
    def _answer(client: socket.socket) -> None:
        client.recv(4096)
        for chunk in chunks:
            client.sendall(chunk)

    return _answer


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"], Answer("returns HTTP 200", healthy=True, status=200)),
        ([b"HTTP/1.0 204 No Content\r\n\r\n"], Answer("returns HTTP 204", healthy=True, status=204)),
        ([b"HTTP/1.1 200\r\n\r\n"], Answer("returns HTTP 200", healthy=True, status=200)),
        ([b"HTTP/1.1 503 Service Unavailable\r\n\r\n"], Answer("returns HTTP 503", status=503)),
        ([b"HTTP/1.1 302 Found\r\nLocation: /200\r\n\r\n"], Answer("returns HTTP 302", status=302)),
        ([b"HT", b"TP/1.1 2", b"00 OK\r\n"], Answer("returns HTTP 200", healthy=True, status=200)),
        ([], Answer("closes the connection")),
        ([b"SSH-2.0-OpenSSH 200\r\n"], Answer("does not speak HTTP")),
        ([b"x" * 10000], Answer("does not speak HTTP")),
    ],
)
def test_understands_the_answer(chunks: list[bytes], expected: Answer) -> None:
    assert _ask(f"http://127.0.0.1:{_serve(_says(*chunks))}/health") == expected


def test_asks_for_the_path_of_the_url() -> None:
    asked: list[bytes] = []

    def _answer(client: socket.socket) -> None:
        asked.append(client.recv(4096))
        client.sendall(b"HTTP/1.1 200 OK\r\n")

    port = _serve(_answer)
    _ask(f"http://127.0.0.1:{port}/v1/up?deep=1")
    assert asked[0].startswith(f"GET /v1/up?deep=1 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n".encode())


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert _ask(f"http://127.0.0.1:{port}/health") == Answer("refuses connections")


def test_ipv6() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        port = server.getsockname()[1]
    assert _ask(f"http://[::1]:{port}/health") == Answer("refuses connections")


def test_no_address() -> None:
    answer = Probe("http://nowhere:1/", Resolution(error="Name or service not known"), 0.0).answer
    assert answer == Answer("cannot be reached (Name or service not known)")


def _nobody() -> tuple[str, int]:
    """Return an address of this machine on which no program listens."""
    with socket.create_server(("127.0.0.2", 0)) as server:
        address: tuple[str, int] = server.getsockname()
    return address


NO_FAMILY: Address = (255, ("127.0.0.1", 1))  # EAFNOSUPPORT, like AF_INET6 on a kernel without IPv6
NOT_OURS: Address = (socket.AF_INET, ("255.255.255.255", 80))  # unreachable at once, like ::1 where IPv6 is disabled


def test_every_address_is_tried_in_order() -> None:
    serving: Address = (socket.AF_INET, ("127.0.0.1", _serve(_says(b"HTTP/1.1 200 OK\r\n"))))
    assert _ask("http://localhost/", (socket.AF_INET, _nobody()), NO_FAMILY, NOT_OURS, serving).healthy


def test_a_refusal_says_more_than_an_address_that_cannot_be_used() -> None:
    refused: Address = (socket.AF_INET, _nobody())
    for addresses in ((refused, NOT_OURS), (NOT_OURS, refused)):
        assert _ask("http://localhost/", *addresses) == Answer("refuses connections")
    assert _ask("http://localhost/", NOT_OURS).text.startswith("cannot be reached (")


def test_an_address_that_answered_is_not_left_for_another() -> None:
    mute: Address = (socket.AF_INET, ("127.0.0.1", _serve(_says())))
    healthy: Address = (socket.AF_INET, ("127.0.0.1", _serve(_says(b"HTTP/1.1 200 OK\r\n"))))
    assert _ask("http://localhost/", (socket.AF_INET, _nobody()), mute, healthy) == Answer("closes the connection")


def test_an_address_that_drops_everything_has_its_share_of_the_time_only() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, socket.create_connection(full.getsockname()):
        serving: Address = (socket.AF_INET, ("127.0.0.1", _serve(_says(b"HTTP/1.1 200 OK\r\n"))))
        probe = Probe("http://localhost/", Resolution(((socket.AF_INET, full.getsockname()), serving)), 0.0)
        probe.advance(0.0)
        assert (probe.answer, probe.deadline) == (None, TIMEOUT / 2)  # the kernel drops new connections while the queue is full
        probe.advance(TIMEOUT / 2)
        while probe.answer is None:
            assert any(select.select(probe.reading, probe.writing, (), 10))
            probe.advance(TIMEOUT / 2)
    assert probe.answer.healthy


def test_a_server_that_accepts_and_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        probe = Probe("http://127.0.0.1/", Resolution(((socket.AF_INET, server.getsockname()),)), 100.0)
        probe.advance(100.0)
        assert probe.answer is None
        assert probe.deadline == 100.0 + TIMEOUT
        probe.advance(probe.deadline)
    assert probe.answer == Answer("does not answer within 5 s")
