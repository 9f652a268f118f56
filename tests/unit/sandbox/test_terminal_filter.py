"""Tests of the output that reaches root's terminal, split at any point."""

from __future__ import annotations

import pytest

from vllm_safe.sandbox.terminal_filter import TerminalFilter


@pytest.mark.parametrize(
    "text", ["\r\x1b[K50 %", "\x1b[1;31merror\x1b[0m: é ⠋\n", "\x1b[2A\x1b[2K", "\x1b[?25l\x1b[?25h\x1b[?2026h", "a\tb\b\r\n"]
)
def test_a_progress_bar_is_as_it_was(text: str) -> None:
    tame = TerminalFilter()
    assert b"".join(tame(bytes([byte])) for byte in text.encode()) + tame(b"") == text.encode()
    assert TerminalFilter()(text.encode()) == text.encode()


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"\x1b]52;c;cm0=\x07", b"]52;c;cm0="),  # the clipboard
        (b"\x1b[21t\x1b[6n\x1b[c", b"[21t[6n[c"),  # queries of title, cursor and terminal type, answered as if typed
        (b"\x1b[?1000h\x1bc\x1bP$q\x1b\\", b"[?1000hcP$q\\"),
        ("\u009b6n\u009d0;t\u009c".encode(), b"6n0;t"),  # the same as C1 control characters
        (b"\x9b6n\xff", "\ufffd6n\ufffd".encode()),
        (b"words \x1b[", b"words ["),
        (b"\x1b[" + b"1;" * 1000 + b"m", b"[" + b"1;" * 1000 + b"m"),
    ],
)
def test_nothing_else_does_more_than_words(data: bytes, shown: bytes) -> None:
    tame = TerminalFilter()
    assert b"".join(tame(data[at : at + 1]) for at in range(len(data))) + tame(b"") == shown
    tame = TerminalFilter()
    assert tame(data) + tame(b"") == shown
