"""The server and the clients of the gateway's benchmark. They run in a bed, with the standard library alone.

`http_load.py serve PORT` answers each POST with a line of JSON. If the body asks for a stream, it answers with TOKENS events, PACE seconds
apart. `http_load.py latency|streams|many PORT` prints figures as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

TOKENS, PACE, STREAMS = 300, 0.01, 64  # 6,400 tokens each second
SMALL, WARM = 3000, 200  # requests, one after the other
MANY, CONNECTIONS = 10_000, 256
EVENT = b'data: {"id":"cmpl-1","object":"text_completion","choices":[{"index":0,"text":" token","finish_reason":null}]}\n\n'
ANSWER = b'{"id":"cmpl-1","object":"text_completion","choices":[{"index":0,"text":" token","finish_reason":"length"}]}'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(ANSWER)
EVENTS_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNK = b"%x\r\n%s\r\n" % (len(EVENT), EVENT)


async def serve_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the requests of one connection."""
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            lengths = [int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            body = await reader.readexactly(sum(lengths))
            if b'"stream"' not in body:
                writer.write(HEAD + ANSWER)
                continue
            writer.write(EVENTS_HEAD)
            begin = time.monotonic()
            for number in range(TOKENS):
                writer.write(CHUNK)
                await writer.drain()
                await asyncio.sleep(max(begin + (number + 1) * PACE - time.monotonic(), 0))
            writer.write(b"0\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


def request(*, stream: bool) -> bytes:
    """Return a small request, as OpenAI's client sends it. The name of the model comes last."""
    content = {"messages": [{"role": "user", "content": "x" * 200}], **({"stream": True} if stream else {}), "model": "bench"}
    body = json.dumps(content).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def answer_to(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sent: bytes) -> None:
    """Send a small request, and read its answer."""
    writer.write(sent)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if not head.startswith(b"http/1.1 200 "):
        raise ValueError(head.decode())
    if b"transfer-encoding: chunked" in head:
        while await reader.readuntil(b"\r\n") != b"0\r\n":
            await reader.readuntil(b"\r\n")
        await reader.readuntil(b"\r\n")
    else:
        length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
        if await reader.readexactly(length) != ANSWER:
            raise ValueError("unexpected answer")


async def latency(port: int) -> dict[str, float]:
    """Return how long a small request takes, in milliseconds."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    sent, took = request(stream=False), []
    for _ in range(SMALL + WARM):
        begin = time.perf_counter()
        await answer_to(reader, writer, sent)
        took.append((time.perf_counter() - begin) * 1000)
    writer.close()
    took = sorted(took[WARM:])
    return {"median": took[len(took) // 2], "p99": took[len(took) * 99 // 100]}


async def streams(port: int) -> dict[str, float]:
    """Return how many tokens per second STREAMS clients receive together."""
    begin = time.perf_counter()
    tokens = sum(await asyncio.gather(*(stream(port) for _ in range(STREAMS))))
    return {"tokens": tokens, "rate": tokens / (time.perf_counter() - begin)}


async def stream(port: int) -> int:
    """Receive one stream; return the number of its tokens."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(stream=True))
    tokens, tail = 0, b""
    while not tail.endswith(b"\r\n0\r\n\r\n"):
        piece = await reader.read(1 << 16)
        if not piece:
            break
        tokens += piece.count(b"data: {")
        tail = (tail + piece)[-7:]
    writer.close()
    return tokens


async def many(port: int) -> dict[str, float]:
    """Send MANY requests through CONNECTIONS connections. Return how many were lost, and how many were answered per second."""
    left, lost = list(range(MANY)), 0
    sent = request(stream=False)

    async def client() -> None:
        nonlocal lost
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while left:
            left.pop()
            try:
                await answer_to(reader, writer, sent)
            except (ValueError, asyncio.IncompleteReadError, ConnectionError):
                lost += 1
                writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()

    begin = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(CONNECTIONS)))
    return {"lost": lost, "rate": MANY / (time.perf_counter() - begin)}


async def serve(port: int) -> None:
    """Serve until the process is killed."""
    server = await asyncio.start_server(serve_connection, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


def main() -> None:
    """Run the part that the command line names."""
    port = int(sys.argv[2])
    if sys.argv[1] == "serve":
        asyncio.run(serve(port))
    else:
        measures = {"latency": latency, "streams": streams, "many": many}
        sys.stdout.write(json.dumps(asyncio.run(measures[sys.argv[1]](port))))


if __name__ == "__main__":
    main()
