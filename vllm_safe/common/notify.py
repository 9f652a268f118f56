"""Telling systemd how it goes: the sd_notify(3) protocol. Standard library only, for every process of ours that a unit starts."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

from vllm_safe.common.printable_text import printable


def notify(**fields: str) -> None:
    """Send e.g. `READY="1", STATUS="loading"` to systemd; nothing without NOTIFY_SOCKET, nor when nobody listens there.

    A value is sent as one line: systemd reads one assignment from each. It may quote a server, and systemctl prints it as it is.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    message = "\n".join(f"{name}={printable(' '.join(value.split()))}" for name, value in fields.items())
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.sendto(message.encode(errors="replace"), address.replace("@", "\0", 1) if address[0] == "@" else address)
