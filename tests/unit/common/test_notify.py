"""sd_notify: the message that arrives, and that a socket on which nobody listens is not an error."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from vllm_safe.common.notify import notify


def test_each_field_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "socket"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "socket"))
        notify(READY="1", STATUS="two\nlines, READY=0")
        assert systemd.recv(4096) == b"READY=1\nSTATUS=two lines, READY=0"
        notify(STATUS="Error: \x1b]0;title\x07 \x9b2J é")  # text of a server, which `systemctl status` prints on root's terminal
        assert systemd.recv(4096).decode() == "STATUS=Error: ?]0;title? ?2J é"


def test_an_abstract_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0vllm-safe-test-notify")
        monkeypatch.setenv("NOTIFY_SOCKET", "@vllm-safe-test-notify")
        notify(STATUS="here")
        assert systemd.recv(4096) == b"STATUS=here"


@pytest.mark.parametrize("address", ["", "relative", "/nowhere/socket", "@nobody-listens"])
def test_nobody_listening_is_no_error(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify(READY="1")
