"""The health question: every way in which a server may answer it, or not."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable

import pytest

from vllm_safe.launch.probe import TIMEOUT, Answer, Probe


def _ask(url: str) -> Answer:
    probe = Probe(url, 0.0)
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
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"], Answer("answers 200", healthy=True, status=200)),
        ([b"HTTP/1.0 204 No Content\r\n\r\n"], Answer("answers 204", healthy=True, status=204)),
        ([b"HTTP/1.1 200\r\n\r\n"], Answer("answers 200", healthy=True, status=200)),
        ([b"HTTP/1.1 503 Service Unavailable\r\n\r\n"], Answer("answers 503", status=503)),
        ([b"HTTP/1.1 302 Found\r\nLocation: /200\r\n\r\n"], Answer("answers 302", status=302)),
        ([b"HT", b"TP/1.1 2", b"00 OK\r\n"], Answer("answers 200", healthy=True, status=200)),
        ([], Answer("closes the connection")),
        ([b"SSH-2.0-OpenSSH 200\r\n"], Answer("does not answer in HTTP")),
        ([b"x" * 10000], Answer("does not answer in HTTP")),
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


def test_no_such_host() -> None:
    answer = Probe("http://256.256.256.256:1/", 0.0).answer
    assert answer is not None
    assert answer.text.startswith("cannot be reached (")


def test_a_server_that_accepts_and_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        probe = Probe(f"http://127.0.0.1:{server.getsockname()[1]}/", 100.0)
        probe.advance(100.0)
        assert probe.answer is None
        assert probe.deadline == 100.0 + TIMEOUT
        probe.advance(probe.deadline)
    assert probe.answer == Answer("does not answer within 5 s")
