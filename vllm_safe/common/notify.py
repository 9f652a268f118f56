"""The sd_notify(3) protocol, for every process of the package that a unit starts. Standard library only."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

from vllm_safe.common.printable_text import printable


def notify(**fields: str) -> None:
    """Send assignments such as `READY="1", STATUS="loading"` to systemd.

    Does nothing without NOTIFY_SOCKET, or when nobody listens there. Each value is sent as one line, since systemd reads one assignment
    from each line. Characters that could control a terminal are replaced: a value can quote a server, and systemctl prints it unchanged.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    message = "\n".join(f"{name}={printable(' '.join(value.split()))}" for name, value in fields.items())
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.sendto(message.encode(errors="replace"), address.replace("@", "\0", 1) if address[0] == "@" else address)
