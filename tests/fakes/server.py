"""A server that behaves or misbehaves as its options say: python3 server.py PORT [option]... Standard library only; also runs in beds."""

from __future__ import annotations

import argparse
import mmap
import os
import signal
import socket
import sys
import time
from types import FrameType


def main() -> None:
    """Run the server as the arguments say, in this order."""
    ask = argparse.ArgumentParser(prog="fake")
    ask.add_argument("port", type=int)
    ask.add_argument("--deaf", action="store_true", help="ignore SIGTERM")
    ask.add_argument("--swallow", action="store_true", help="ignore the first SIGTERM that comes while loading, as vLLM does")
    ask.add_argument("--daemon", action="store_true", help="leave a process in a session of its own behind")
    ask.add_argument("--detach", action="store_true", help="fork twice and go on in the grandchild; what was started exits 0")
    ask.add_argument("--print", type=int, default=0, metavar="BYTES", help="print so much at once")
    ask.add_argument("--line", type=int, default=100, metavar="BYTES", help="the length of those lines")
    ask.add_argument("--fill", default="", metavar="FILE", help="write to it until the disk is full, and fail of that")
    ask.add_argument("--spill", default="", metavar="FILE", help="the same, and go on")
    ask.add_argument("--read", default="", metavar="FILE", help="load it as vLLM does: mapped, page after page")
    ask.add_argument("--say", default="", help="print this line to stderr")
    ask.add_argument(
        "--again", type=float, default=0.0, metavar="SECONDS", help="print it again each so many seconds while never listening"
    )
    ask.add_argument("--spin", action="store_true", help="leave a process behind that uses all of a processor, and wait for nothing")
    ask.add_argument("--load", type=float, default=0.0, metavar="SECONDS", help="time until it listens")
    ask.add_argument("--exit", type=int, metavar="CODE", help="exit so after loading")
    ask.add_argument("--never", action="store_true", help="never listen")
    ask.add_argument("--mute", action="store_true", help="accept and never answer")
    ask.add_argument("--status", type=int, default=200, help="what /health answers")
    ask.add_argument("--silent", type=float, default=1e6, metavar="SECONDS", help="after listening so long, accept and never answer")
    ask.add_argument("--serve", type=float, default=1e6, metavar="SECONDS", help="exit 0 after serving so long, as vLLM with a dead engine")
    _behave(ask.parse_args())


def _behave(options: argparse.Namespace) -> None:
    _signals(options)
    if options.daemon and os.fork() == 0:
        os.setsid()
        time.sleep(1e6)
    if options.detach:
        _detach()
    lines = (b"x" * (options.line - 1) + b"\n") * (64000 // options.line)
    for _ in range(options.print // len(lines)):
        _write(lines)
    if options.say:
        _write(options.say.encode() + b"\n")
    _use_disk(options)
    _sleep(options.load)
    if options.exit is not None:
        sys.exit(options.exit)
    if options.spin and os.fork() == 0:
        while True:
            os.sched_yield()
    while options.never:
        _sleep(options.again or 1e6)
        _write(options.say.encode() + b"\n")
    if options.swallow:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _listen(options)


def _signals(options: argparse.Namespace) -> None:
    def swallow(_number: int, _frame: FrameType | None) -> None:
        _write(b"swallowed SIGTERM\n")
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    if options.deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elif options.swallow:
        signal.signal(signal.SIGTERM, swallow)


def _detach() -> None:
    """Detach as daemon(3) does, but keep the output in the journal."""
    for _ in range(2):
        if os.fork():
            os._exit(0)
        os.setsid()


def _use_disk(options: argparse.Namespace) -> None:
    if options.fill:
        _fill(options.fill)
    if options.spill:
        try:
            _fill(options.spill)
        except OSError as error:
            _write(f"{error}\n".encode())
    if options.read:
        with open(options.read, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:  # noqa: PTH123 - without pathlib, which takes memory
            for at in range(0, len(mapped), mmap.PAGESIZE):
                mapped[at]


def _fill(path: str) -> None:
    with open(path, "wb", buffering=0) as file:  # noqa: PTH123 - without pathlib, which takes memory
        while True:
            file.write(bytes(1 << 16))


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


def _sleep(seconds: float) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, 3600))


def _listen(options: argparse.Namespace) -> None:
    since = time.monotonic()
    until = since + options.serve
    with socket.create_server(("127.0.0.1", options.port)) as server:
        held = []
        while (left := until - time.monotonic()) > 0:
            server.settimeout(min(left, 3600))
            try:
                client, _ = server.accept()
            except TimeoutError:
                continue
            if options.mute or time.monotonic() - since > options.silent:
                held.append(client)
                continue
            with client:
                client.recv(65536)
                client.sendall(f"HTTP/1.1 {options.status} Said So\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())


if __name__ == "__main__":
    main()
