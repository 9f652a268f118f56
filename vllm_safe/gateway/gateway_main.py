"""The main process of vllm-gateway.service: it listens, reads its settings again on SIGHUP, and ends on SIGTERM."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable

from aiohttp import web

from vllm_safe.common.errors import Failure, Misuse
from vllm_safe.common.notify import notify
from vllm_safe.contract.api_key import read_api_key
from vllm_safe.contract.gateway_file import GATEWAY_FILE, GatewayFile, read_gateway_file
from vllm_safe.gateway.client_connection import ClientConnection, OpenConnections
from vllm_safe.gateway.gateway_handler import GatewayHandler
from vllm_safe.gateway.model_server import ModelServers
from vllm_safe.gateway.model_watch import ModelWatch
from vllm_safe.gateway.switchboard import Switchboard

PATIENCE = 10.0  # seconds that running answers have after SIGTERM
_MOST_CONNECTIONS = 1024


def main() -> int:
    """Run the gateway until systemd stops it. Exit code 2 means that another start would fail as well."""
    try:
        asyncio.run(Gateway().run())
    except Failure as failure:
        hint = f"\n  {failure.hint}" if failure.hint else ""
        sys.stderr.write(f"vllm-gateway: {failure.message}{hint}\n")
        notify(STATUS=". ".join(text for text in (failure.message, failure.hint) if text))
        return failure.exit_code
    return 0


class Gateway:
    """The process."""

    def __init__(self, file: str = GATEWAY_FILE) -> None:
        self._file = file
        self._settings = _read(file)
        if not self._settings.enabled:
            raise Misuse(
                "gateway.enabled is false", hint="Set it to true in /etc/vllm-safe/config.yaml, then: systemctl restart vllm-gateway"
            )
        self._key = read_api_key()
        self._connections = OpenConnections(_MOST_CONNECTIONS)
        self._stop = asyncio.Event()
        self._listening: asyncio.Server | None = None

    @property
    def listens(self) -> bool:
        """Whether clients can connect."""
        return self._listening is not None

    def stop(self) -> None:
        """Stop serving, as on SIGTERM."""
        self._stop.set()

    async def run(self) -> None:
        """Serve until SIGTERM. Raises Failure if that is not possible."""
        servers = ModelServers()
        try:
            await self._serve(GatewayHandler(Switchboard(self._settings, ModelWatch()), servers, self._connections, self._key))
        finally:
            await servers.close()

    async def _serve(self, handler: GatewayHandler) -> None:
        loop = asyncio.get_running_loop()
        web_server = web.Server(handler.answer)

        def connect() -> ClientConnection:
            return ClientConnection(web_server, self._connections)

        self._listening = await _listen(self._settings, connect)
        loop.add_signal_handler(signal.SIGTERM, self.stop)
        loop.add_signal_handler(signal.SIGINT, self.stop)
        loop.add_signal_handler(signal.SIGHUP, lambda: loop.create_task(self._reload(handler, connect)))
        self._say_ready()
        while not self._stop.is_set():
            notify(WATCHDOG="1")
            await _first(self._stop, _watchdog_interval())
        notify(STOPPING="1", STATUS=f"ends: running answers have {PATIENCE:g} s")
        self._listening.close()
        await handler.end(PATIENCE)
        for connection in list(self._connections.all):
            connection.force_close()

    async def _reload(self, handler: GatewayHandler, connect: Callable[[], ClientConnection]) -> None:
        """Read the settings again. Keep the present ones if the new ones cannot be used."""
        try:
            settings = _read(self._file)
            if not settings.enabled:
                raise Misuse("gateway.enabled is false, and a reload stops nothing: systemctl disable --now vllm-gateway")
            if (settings.host, settings.port) != (self._settings.host, self._settings.port):
                listening = await _listen(settings, connect)
                if self._listening is not None:
                    self._listening.close()
                self._listening = listening
        except Failure as failure:
            sys.stderr.write(f"vllm-gateway: {failure.message}; the settings from before stay in force\n")
            return
        self._settings = settings
        handler.configure(settings)
        self._say_ready()

    def _say_ready(self) -> None:
        where = f"{self._settings.host}:{self._settings.port}"
        names = ", ".join(model.name for model in self._settings.models) or "no model"
        notify(READY="1", STATUS=f"listens on {where} for {names}")


async def _listen(settings: GatewayFile, connect: Callable[[], ClientConnection]) -> asyncio.Server:
    try:
        return await asyncio.get_running_loop().create_server(connect, settings.host, settings.port, backlog=1024)
    except (OSError, UnicodeError) as error:
        message = f"cannot listen on {settings.host}:{settings.port}: {getattr(error, 'strerror', None) or error}"
        raise Failure(
            message, hint="Set gateway.host and gateway.port in /etc/vllm-safe/config.yaml, then: systemctl restart vllm-gateway"
        ) from error


def _read(path: str) -> GatewayFile:
    try:
        return read_gateway_file(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise Misuse(f"cannot read {path}: {reason}", hint="systemctl restart vllm-gateway writes it again") from error


def _watchdog_interval() -> float:
    """Return the seconds between two watchdog notifications: a third of WatchdogSec=."""
    return int(os.environ.get("WATCHDOG_USEC", "30000000")) / 3e6


async def _first(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
