"""The connections between the main processes of one model on several machines, without blocking. Standard library only.

The first machine listens, and the others connect to it. Connections from other addresses than those of the machines in the configuration
are closed. Messages have a bounded length, and nothing that arrives here is executed.
"""

from __future__ import annotations

import errno
import math
import os
import socket
from collections.abc import Iterator
from contextlib import suppress

from vllm_safe.contract.launch_file import Launch
from vllm_safe.launch.node_group import REPORT_EVERY, NodeGroup
from vllm_safe.launch.node_messages import LONGEST_MESSAGE, Alive, Farewell, Go, Hello, NodeMessage, decode_message, encode_message
from vllm_safe.launch.node_route import Route, find_route, is_private_address
from vllm_safe.launch.resolver import Resolver

_AGAIN = 1.0  # seconds before the next attempt to listen or to connect
_GREETING = 10.0  # seconds within which the first message must arrive on a new connection
_MOST_UNSENT = 1 << 18  # bytes that wait for a machine that does not read
_MOST_STRANGERS = 16  # connections without a first message
_LOOKED_UP = 5.0  # seconds after which the status mentions that a name is still being looked up
_NAME_AGAIN = 60.0  # seconds after which names are looked up again while machines are missing: an address may have changed

_IPV6_ONLY = "its name has the IPv6 address {} and no IPv4 address, which is needed here"
_REFUSED = os.strerror(errno.ECONNREFUSED)


class _Channel:
    """One connection. Both directions are bounded."""

    def __init__(self, connection: socket.socket, address: str, now: float, *, connecting: bool = False) -> None:
        self.address, self.since, self.connecting = address, now, connecting
        self.node = ""  # the machine at the other end; known after the first message
        self.unsent = b""
        self.closed = False
        self._connection, self._received = connection, b""
        connection.settimeout(0)  # never blocks
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def fileno(self) -> int:
        return self._connection.fileno()

    def try_to_connect(self) -> str:
        """Return why the connection cannot be made, or "": it is made, or still `connecting`."""
        if code := self._connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            return os.strerror(code)
        with suppress(OSError):  # ENOTCONN
            self._connection.getpeername()
            self.connecting = False
        return ""

    def send(self, message: NodeMessage) -> None:
        if len(self.unsent) < _MOST_UNSENT:
            self.unsent += encode_message(message)
        self.flush()

    def flush(self) -> None:
        if self.connecting or self.closed:
            return
        try:
            while self.unsent:
                self.unsent = self.unsent[self._connection.send(self.unsent) :]
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.closed = True

    def messages(self) -> Iterator[NodeMessage]:
        """Yield the messages that have arrived. The connection is closed after a line that is too long or not a message."""
        try:
            chunk = self._connection.recv(LONGEST_MESSAGE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            chunk = b""
        *lines, self._received = (self._received + chunk).split(b"\n")
        for line in lines:
            message = decode_message(line)
            if message is None:
                self.closed = True
                return
            yield message
        self.closed = self.closed or not chunk or len(self._received) > LONGEST_MESSAGE

    def close(self) -> None:
        self.closed = True
        self._connection.close()


class NodeLink:
    """The connections of this machine to the others of its model. `group` handles the messages that arrive."""

    def __init__(self, launch: Launch, group: NodeGroup, now: float) -> None:
        self.group = group
        self.route: Route | None = None  # to the other machines; None until their addresses are known
        self._launch = launch
        self._port = launch.nodes_port
        self._resolver, self._resolved = Resolver(), now
        self._listener: socket.socket | None = None
        self._channels: list[_Channel] = []
        self._try_at, self._report_at = now, now
        self._reported, self._has_ended = "", False

    @property
    def reading(self) -> tuple[int, ...]:
        """The descriptors to wait for until they are readable."""
        open_ones = tuple(channel.fileno() for channel in self._channels if not channel.connecting)
        return (self._listener.fileno(), *open_ones) if self._listener else open_ones

    @property
    def writing(self) -> tuple[int, ...]:
        """The descriptors to wait for until they are writable."""
        return tuple(channel.fileno() for channel in self._channels if channel.connecting or channel.unsent)

    @property
    def due(self) -> float:
        """The time of the next necessary call of `advance`; math.inf once this machine has reported its end."""
        if self._has_ended:
            return math.inf
        return self._report_at if self._is_linked else min(self._report_at, self._try_at)

    @property
    def _is_linked(self) -> bool:
        return self._listener is not None or bool(self._channels)

    def advance(self, now: float) -> None:
        """Continue as far as possible without blocking."""
        for name in self.group.pass_time(now):
            self._close(name)
        if not self._is_linked and not self._has_ended and now >= self._try_at:
            self._try_at = now + _AGAIN
            self._open(now)
        if self._listener:
            self._accept(now, self._listener)
        for channel in list(self._channels):
            if channel.connecting:
                self._connected(channel, now)
            else:
                self._exchange(channel, now)
        for channel in [channel for channel in self._channels if channel.closed]:
            channel.close()
            self._channels.remove(channel)
            if channel.node:
                self.group.disconnected(channel.node)

    def report(self, now: float, alive: Alive) -> None:
        """Tell the others the state of this machine: every REPORT_EVERY seconds, and at once in a new phase."""
        if now >= self._report_at or alive.phase != self._reported:
            self._report_at, self._reported = now + REPORT_EVERY, alive.phase
            self._send_all(alive)

    def go(self) -> None:
        """Tell the others, from the first machine, that all are connected."""
        self.group.started = True
        self._send_all(Go())

    def end(self, farewell: Farewell) -> None:
        """Tell the others, once, why the server of this machine ends. The first machine then accepts no further connections."""
        if self._has_ended:
            return
        self._has_ended = not farewell.elsewhere
        self._send_all(farewell)
        if self._has_ended and self._listener:
            self._listener.close()
            self._listener = None

    def close(self) -> None:
        """Close all connections."""
        for channel in self._channels:
            channel.close()
        self._channels = []
        if self._listener:
            self._listener.close()
            self._listener = None

    def environment(self) -> dict[str, str]:
        """Return the variables with which the server's processes reach those on the other machines."""
        if self.route is None:
            return {}
        return {"VLLM_HOST_IP": self.route.own, "NCCL_SOCKET_IFNAME": self.route.interface, "GLOO_SOCKET_IFNAME": self.route.interface}

    def _send_all(self, message: NodeMessage) -> None:
        for channel in self._channels:
            if channel.node:
                channel.send(message)

    def _addresses(self, name: str, now: float) -> tuple[str, ...]:
        """Return the known IPv4 addresses of a machine. If there are none, report the reason to the group."""
        if now >= self._resolved + _NAME_AGAIN and not self.group.started:
            self._resolver, self._resolved = Resolver(), now
        found = self._resolver.look_up(f"http://{name}:{self._port}")
        addresses = tuple(str(address[0]) for family, address in found.addresses if family == socket.AF_INET)
        if not addresses:
            late = now >= self._resolved + _LOOKED_UP  # before that, a lookup that is under way is not worth mentioning
            self.group.trouble = (found.error or _IPV6_ONLY.format(found.addresses[0][1][0])) if late or found.addresses else ""
        return () if any(self._refuses(name, address) for address in addresses) else addresses

    def _refuses(self, name: str, address: str) -> bool:
        """Return whether an address may not be used because it is not private. If so, report that to the group."""
        if self._launch.nodes_public or is_private_address(address):
            return False
        self.group.refuse(
            f"{name} has the address {address}, which is not private: the traffic of vLLM between machines is neither encrypted nor "
            "authenticated (nodes_public)"
        )
        return True

    def _open(self, now: float) -> None:
        other = self.group.names[0]
        for address in self._addresses(other, now)[:1]:
            try:
                self.route = find_route(address)
                self.group.trouble = ""
                if self._refuses(self.group.me, self.route.own):
                    return
                if self.group.is_first:
                    self._listen(self.route.own)
                else:
                    self._connect(address, now)
            except OSError as error:
                self.group.trouble = f"{error.strerror or error}"

    def _listen(self, own: str) -> None:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((own, self._port))
            listener.listen(_MOST_STRANGERS)
        except OSError as error:
            listener.close()
            raise OSError(error.errno, f"cannot listen on {own}:{self._port}: {error.strerror}") from error
        self._listener = listener

    def _connect(self, address: str, now: float) -> None:
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        code = connection.connect_ex((address, self._port))
        if code not in {0, errno.EINPROGRESS}:
            connection.close()
            raise OSError(code, os.strerror(code))
        self._channels.append(_Channel(connection, address, now, connecting=True))

    def _connected(self, channel: _Channel, now: float) -> None:
        """Greet the first machine, once the connection is made."""
        late = "it does not answer" if now >= channel.since + _GREETING else ""
        if problem := channel.try_to_connect() or late:
            self.group.trouble = "" if problem == _REFUSED else problem  # it has not started yet
            channel.close()
        if channel.connecting or channel.closed:
            return
        channel.node = self.group.names[0]
        channel.send(self.group.hello)
        self.group.trouble = ""
        self.group.connected()

    def _accept(self, now: float, listener: socket.socket) -> None:
        for _ in range(_MOST_STRANGERS):
            try:
                connection, (address, _port) = listener.accept()
            except OSError:
                return
            known = any(address in self._addresses(name, now) for name in self.group.names)
            strangers = sum(1 for channel in self._channels if not channel.node)
            if known and strangers < _MOST_STRANGERS:
                self._channels.append(_Channel(connection, address, now))
            else:
                connection.close()

    def _exchange(self, channel: _Channel, now: float) -> None:
        channel.flush()
        for message in channel.messages():
            if channel.node:
                self.group.received(channel.node, message)
            elif isinstance(message, Hello):
                self._greeted(channel, message, now)
            else:
                channel.closed = True
        if not channel.node and now >= channel.since + _GREETING:
            channel.closed = True

    def _greeted(self, channel: _Channel, hello: Hello, now: float) -> None:
        if hello.node not in self.group.names or channel.address not in self._addresses(hello.node, now):
            channel.closed = True
            return
        self._close(hello.node)  # an older connection of a machine that has come back
        if problem := self.group.greet(hello):
            channel.send(Farewell(problem, never=self.group.verdict is not None and self.group.verdict.never))
            channel.closed = True
        else:
            channel.node = hello.node

    def _close(self, name: str) -> None:
        for channel in self._channels:
            if channel.node == name:
                channel.node, channel.closed = "", True
