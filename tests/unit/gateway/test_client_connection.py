"""Clients that are slow, wrong or hostile, as bytes on a connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from tests.builders.gateway_rig import Rig, running_gateway, wait_until
from vllm_safe.gateway import client_connection, gateway_handler, gateway_main

BODY = b'{"model": "a"}'
POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
GOOD = POST + b"Content-Length: 14\r\n\r\n" + BODY

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def talk(rig: Rig, what: Callable[[Streams], Awaitable[None]]) -> None:
    rig.add("a")

    async def run() -> None:
        async with asyncio.timeout(60), running_gateway(rig):
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
            await what((reader, writer))
            writer.close()

    asyncio.run(run())


async def one_answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
    return int(head.split()[1]), await reader.readexactly(length)


@pytest.mark.parametrize(
    "sent",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 50,  # TLS
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 9000 + b"\r\n\r\n",
        b"GET /" + b"y" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        POST + b"Content-Length: -1\r\n\r\n",
        POST + b"Content-Length: 14\r\nContent-Length: 15\r\n\r\n" + BODY,
        # What one side reads as a body, another one might read as the next request.
        POST + b"Content-Length: 14\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /metrics HTTP/1.1\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: xchunked\r\n\r\n" + BODY,
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + BODY + b"\r\n0\r\n\r\n",
    ],
)
def test_what_is_no_request_is_refused_and_the_connection_closed(rig: Rig, sent: bytes) -> None:
    async def run(streams: Streams) -> None:
        reader, writer = streams
        writer.write(sent)
        answer = await reader.read()
        assert answer == b"" or answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 ")), answer
        assert answer.count(b"HTTP/1.") <= 1

    talk(rig, run)
    assert rig.models["a"].asked == []


def test_requests_one_behind_the_other_are_answered_in_order(rig: Rig) -> None:
    async def run(streams: Streams) -> None:
        reader, writer = streams
        writer.write(GOOD + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" + GOOD)
        answers = [await one_answer(reader) for _ in range(3)]
        assert [status for status, _ in answers] == [200, 200, 200]
        assert json.loads(answers[1][1]) == {"status": "ok"}
        assert json.loads(answers[2][1]) == {"model": "a", "length": 14}

    talk(rig, run)


def test_a_flood_of_requests_without_reading_is_cut(rig: Rig) -> None:
    async def run(streams: Streams) -> None:
        reader, writer = streams
        writer.write(POST + b"Content-Length: 28\r\n\r\n" + b'{"model": "a", "do": "wait"}')
        await wait_until(lambda: rig.models["a"].running)
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 10_000)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1 << 20)
        await wait_until(lambda: not rig.models["a"].running)

    talk(rig, run)


def test_headers_without_end_are_cut(rig: Rig) -> None:
    async def run(streams: Streams) -> None:
        reader, writer = streams
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n")
        for number in range(200):
            writer.write(b"X-%d: " % number + b"y" * 1000 + b"\r\n")
        answer = b""
        with suppress(ConnectionError):  # a reset, where the server closes before it has read all of them
            answer = await reader.read()
        assert answer == b"" or b" 400 " in answer

    talk(rig, run)


def test_the_head_of_a_request_has_to_come_in_time(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_connection, "FIRST_REQUEST", 0.1)

    async def run(streams: Streams) -> None:
        reader, writer = streams
        writer.write(b"GET / HTTP/1.1\r\n")
        assert await reader.read() == b""

    talk(rig, run)


def test_so_has_its_body(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_handler, "_SILENCE", 0.1)

    async def run(streams: Streams) -> None:
        reader, writer = streams
        writer.write(POST + b"Content-Length: 100\r\n\r\n" + BODY[:5])
        status, text = await one_answer(reader)
        assert status == 408
        assert b"did not come" in text

    talk(rig, run)


def test_a_body_that_stops_in_its_middle_ends_the_request_to_the_model(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_handler, "_SILENCE", 0.3)

    async def run(streams: Streams) -> None:
        reader, writer = streams
        writer.write(POST + b"Content-Length: 5000000\r\n\r\n" + BODY[:-1] + b', "x": "' + b"y" * 2_000_000)
        status, _ = await one_answer(reader)
        assert status == 408
        await wait_until(lambda: not rig.models["a"].running)

    talk(rig, run)
    assert rig.models["a"].asked == []


def test_a_client_that_ends_in_its_body_is_forgotten(rig: Rig) -> None:
    async def run(streams: Streams) -> None:
        reader, writer = streams
        writer.write(GOOD)
        assert (await one_answer(reader))[0] == 200
        writer.write(POST + b"Content-Length: 5000000\r\n\r\n" + BODY[:-1] + b', "x": "' + b"y" * 2_000_000)
        await wait_until(lambda: rig.models["a"].running)
        writer.transport.abort()
        await wait_until(lambda: not rig.models["a"].running)

    talk(rig, run)


def test_one_that_closes_its_sending_side_is_gone(rig: Rig) -> None:
    async def run(streams: Streams) -> None:
        reader, writer = streams
        writer.write(POST + b"Content-Length: 28\r\n\r\n" + b'{"model": "a", "do": "wait"}')
        await wait_until(lambda: rig.models["a"].running)
        writer.write_eof()
        assert await reader.read() == b""
        await wait_until(lambda: not rig.models["a"].running)

    talk(rig, run)


def test_a_client_is_told_to_send_its_body(rig: Rig) -> None:
    async def run(streams: Streams) -> None:
        reader, writer = streams
        writer.write(POST + b"Content-Length: 14\r\nExpect: 100-continue\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(BODY)
        assert (await one_answer(reader))[0] == 200

    talk(rig, run)
    assert "expect" not in rig.models["a"].asked[0][1]


def test_a_client_of_http_1_0_gets_a_stream_without_chunks(rig: Rig) -> None:
    async def run(streams: Streams) -> None:
        reader, writer = streams
        body = b'{"model": "a", "stream": true}'
        writer.write(b"POST /v1/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        answer = await reader.read()
        assert b"chunked" not in answer.lower()
        assert answer.endswith(b'\r\n\r\ndata: {"token": 1}\n\ndata: {"token": 1}\n\ndata: {"token": 1}\n\n')

    talk(rig, run)


def test_too_many_connections_are_told_so(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_main, "_MOST_CONNECTIONS", 4)

    async def run(streams: Streams) -> None:
        reader, writer = streams
        writer.write(GOOD)
        assert (await one_answer(reader))[0] == 200
        others = [await asyncio.open_connection("127.0.0.1", rig.port) for _ in range(4)]
        writer.write(GOOD)
        status, text = await one_answer(reader)
        assert (status, b"more than 4 connections" in text) == (503, True)
        further, last = await asyncio.open_connection("127.0.0.1", rig.port)
        assert await further.read() == b""
        last.close()
        for _, other in others:
            other.close()
        await asyncio.sleep(0.1)
        writer.write(GOOD)
        assert (await one_answer(reader))[0] == 200

    talk(rig, run)
