"""The server's output: copied completely and without blocking, with its last lines kept."""

from __future__ import annotations

import os
import threading

from vllm_safe.launch.server_output import Output


def _copy(source: int, sink: int) -> Output:
    output = Output(sink, lambda _chunk: None)
    output.read_from(source)
    return output


def _pipes(printed: bytes = b"") -> tuple[Output, int]:
    source, writer = os.pipe()
    os.write(writer, printed)
    os.close(writer)
    reader, sink = os.pipe()
    return _copy(source, sink), reader


def test_passes_on_every_byte() -> None:
    source, writer = os.pipe()
    reader, sink = os.pipe()
    output = _copy(source, sink)
    sent = bytes(range(256)) * 8192
    got = bytearray()

    def _write() -> None:
        with os.fdopen(writer, "wb") as file:
            file.write(sent)

    def _read() -> None:
        while len(got) < len(sent):
            got.extend(os.read(reader, 1000))

    threads = [threading.Thread(target=_write), threading.Thread(target=_read)]
    for thread in threads:
        thread.start()
    while output.reading or output.writing:
        output.advance()
    for thread in threads:
        thread.join()
    assert bytes(got) == sent


def test_reads_no_more_while_the_journal_takes_nothing() -> None:
    source, writer = os.pipe()
    _reader, sink = os.pipe()
    output = _copy(source, sink)
    os.set_blocking(writer, False)
    taken = 0
    for _ in range(100):
        try:
            taken += os.write(writer, b"x" * 65536)
        except BlockingIOError:
            output.advance()
    assert output.reading == ()
    assert taken <= 4 * 65536  # two full pipes, one chunk between them, one that was being read


def test_a_journal_that_is_gone_costs_the_lines_only() -> None:
    output, reader = _pipes(b"one\n")
    os.close(reader)
    output.finish(5)
    assert output.reading == output.writing == ()
    assert output.lines() == ["one"]


def test_own_lines_begin_a_line() -> None:
    output, reader = _pipes(b"half a line")
    output.finish(5)
    output.say("ours")
    assert os.read(reader, 99) == b"half a line\nours\n"


def test_each_own_line_has_the_level() -> None:
    output, reader = _pipes()
    output.say("one\ntwo", prefix="<3>")
    assert os.read(reader, 99) == b"<3>one\n<3>two\n"


def test_a_process_that_prints_for_ever_does_not_hold_the_end_up() -> None:
    source, writer = os.pipe()
    reader, sink = os.pipe()
    os.write(writer, b"x")
    output = _copy(source, sink)
    output.finish(60)  # the writing end stays open: waiting for its end would take for ever
    assert os.read(reader, 9) == b"x"


def test_hands_on_what_comes_and_keeps_the_last_lines_within_bounds() -> None:
    heard: list[bytes] = []
    reader, sink = os.pipe()
    source, writer = os.pipe()
    output = Output(sink, heard.append)
    output.read_from(source)
    os.write(writer, b"one\ntwo\n" + b"x" * 5000 + b"\n")
    os.close(writer)
    output.finish(5)
    os.close(reader)
    assert b"".join(heard).startswith(b"one\ntwo\n")
    assert output.lines(2) == ["two", "x" * 2000]
    assert output.lines(1) == ["x" * 2000]


def test_the_last_lines_steer_no_terminal_and_the_journal_gets_all() -> None:
    printed = b"\x1b]0;title\x07\x1b[1;31mone\x1b[0m\n\x1b[2K\x1b[1Atwo\n"
    output, reader = _pipes(printed)
    output.finish(1.0)
    assert output.lines() == ["one", "two"]
    assert os.read(reader, 1000) == printed
