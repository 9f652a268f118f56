"""A gateway with models of our own: servers that listen, sockets that start them, and the files by which it knows them."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from aiohttp import web

from vllm_safe.contract import launch_file, state_file
from vllm_safe.contract.gateway_file import GatewayFile, GatewayModel
from vllm_safe.contract.state_file import LoadProgress, State
from vllm_safe.gateway import model_watch
from vllm_safe.gateway.gateway_main import Gateway
from vllm_safe.room.room_decision import UpModel, decide_room

TOKENS = 3
EVENT = b'data: {"token": 1}\n\n'


def free_port() -> int:
    with socket.socket() as channel:
        channel.bind(("127.0.0.1", 0))
        return int(channel.getsockname()[1])


class RigModel:
    """A model: its server counts what it is asked, and answers as the fields of a request demand."""

    def __init__(self, rig: Rig, name: str, need: int = 1, *, on_demand: bool = True) -> None:
        self.rig, self.name, self.port = rig, name, free_port()
        self.socket = str(rig.folder / f"{name}.sock") if on_demand else ""
        self.file = GatewayModel(
            name,
            (name, f"org/{name}") if on_demand else (name,),
            self.socket,
            ("127.0.0.1", self.port),
            on_demand,
            None,
            5.0,
            needs={0: need},
        )
        self.load = 0.0  # seconds
        self.fails = ""  # why the start fails
        self.silent = False  # the start fails without a word
        self.starts = 0
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        self.gone = 0  # clients that went away
        self.running = 0
        self.used = 0.0
        self.most_running = 0
        self.release = asyncio.Event()
        self._runner: asyncio.Server | None = None
        self._server: web.Server | None = None
        self._stopping = False
        self._listening: asyncio.Server | None = None
        self._waking: dict[asyncio.StreamWriter, asyncio.Task[None] | None] = {}
        self._state = State(name, "run", 1, 0.0, 0.0, "ended", 0.0, cause="stopped")

    def say(self, phase: str, **more: object) -> None:
        """Write the state."""
        now = time.time()
        started = now if phase == "starting" else self._state.started
        since = now if phase != self._state.phase else self._state.since
        self._state = self._state._replace(phase=phase, time=now, started=started, since=since)._replace(**more)  # type: ignore[arg-type]
        state_file.write_state(self._state)

    @property
    def is_up(self) -> bool:
        return self._runner is not None

    @property
    def up(self) -> UpModel:
        load = self._state.since - self._state.started
        return UpModel(self.name, used=math.inf if self.running else self.used, stays=self._state.since + load)

    async def open_socket(self) -> None:
        self._listening = await asyncio.start_unix_server(self._woken, self.socket)

    async def _woken(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Start, as systemd does when somebody connects."""
        self._waking[writer] = asyncio.current_task()
        try:
            await self._wake(reader)
        finally:
            del self._waking[writer]
            writer.close()

    async def _wake(self, reader: asyncio.StreamReader) -> None:
        await wait_until(lambda: not self._stopping)
        async with self.rig.lock:
            if not await self._load():
                return
        with suppress(ConnectionError):
            await reader.read()

    async def _load(self) -> bool:
        if self._runner is None:
            self.starts += 1
            await self.rig.make_room(self)
            if self.silent:
                return False
            self.say("starting", cause="", reason="", served=False)
            if self.fails:
                self.say("ended", cause="refused", reason=self.fails, text=self.fails)
                return False
            self.say("loading", text="loading weights: 42 %, about 3 min left", progress=LoadProgress(1, 2, 3.0, 180.0))
            await asyncio.sleep(self.load)
            await self.start()
        return True

    async def start(self) -> None:
        """Listen, and be ready."""
        self._server = web.Server(self._answer)
        self._runner = await asyncio.get_running_loop().create_server(self._server, "127.0.0.1", self.port)
        self.say("ready", served=True)

    async def stop(self, *, silently: bool = False) -> None:
        """Stop listening; what runs ends."""
        self._stopping = True
        if not silently:
            self.say("stopping")
        await self._shut_down()
        if not silently:
            self.say("ended", cause="stopped")
        self._stopping = False

    async def close(self) -> None:
        self.release.set()
        if self._listening is not None:
            self._listening.close()
        tasks = [task for task in self._waking.values() if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._shut_down()

    async def _shut_down(self) -> None:
        if self._runner is not None and self._server is not None:
            self._runner.close()
            await self._server.shutdown(0.5)
        self._runner = None

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            return await self._say(request)
        except (asyncio.CancelledError, ConnectionError):
            self.gone += 1
            raise
        finally:
            self.running -= 1
            self.used = time.time()

    async def _wait(self, request: web.BaseRequest) -> None:
        """Wait until the test goes on, or the client is gone."""
        while not self.release.is_set():
            if request.transport is None:
                raise ConnectionResetError
            await asyncio.sleep(0.01)

    async def _say(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.content.read()
        self.asked.append((request.raw_path, {key.lower(): value for key, value in request.headers.items()}, body))
        given = {}
        with suppress(ValueError):
            given = json.loads(body)
        do = given.get("do", "")
        if do == "hang up" or (do == "hang up once" and len(self.asked) == 1):
            assert request.transport is not None
            request.transport.abort()
        if do == "wait":
            await self._wait(request)
        if do == "sleep":
            await asyncio.sleep(given["seconds"])
        if do == "no":
            return web.json_response({"error": {"message": "too\nlong"}}, status=400)
        if not given.get("stream"):
            return web.json_response({"model": self.name, "length": len(body)}, headers={"X-Of-The-Model": "yes", "Keep-Alive": "5"})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        for number in range(given.get("tokens", TOKENS)):
            await response.write(EVENT)
            if do == "break" and number == 1:
                assert request.transport is not None
                await asyncio.sleep(0.05)
                request.transport.abort()
            if do == "wait in the middle":
                await self._wait(request)
        await response.write_eof()
        return response


class Rig:
    """The gateway, its models, and its address."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        for module, name in ((state_file, "STATE_FOLDER"), (launch_file, "LAUNCH_FOLDER")):
            patch.setattr(module, name, folder / name)
            (folder / name).mkdir()
        self.config = folder / "config.yaml"
        patch.setattr(model_watch, "CONFIG", self.config)
        self.models: dict[str, RigModel] = {}
        self.cut = 0  # requests that ran when their model was stopped
        self.lock = asyncio.Lock()  # one start at a time makes room
        self.room = 100
        self.port = free_port()
        self.wait: float | None = None
        self.gateway: Gateway | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add(self, name: str, need: int = 1, *, on_demand: bool = True) -> RigModel:
        model = self.models[name] = RigModel(self, name, need, on_demand=on_demand)
        (self.folder / "LAUNCH_FOLDER" / f"{name}.json").write_text(json.dumps({"name": name, "request": int(on_demand)}))
        return model

    def write(self) -> str:
        """Write the gateway's file."""
        models = tuple(model.file for model in self.models.values())
        file = self.folder / "gateway.json"
        file.write_text(GatewayFile("127.0.0.1", self.port, self.wait, models, {0: self.room}).to_json())
        return str(file)

    async def make_room(self, wanted: RigModel) -> None:
        """Stop others until the wanted model fits, as root does."""
        machine = GatewayFile(models=tuple(model.file for model in self.models.values()), gpus={0: self.room})
        while (room := decide_room(wanted.name, [model.up for model in self.models.values() if model.is_up], machine)).stops:
            if (early := room.due - time.time()) > 0:
                await asyncio.sleep(early)
                continue
            for name in room.stops:
                self.cut += self.models[name].running
                await self.models[name].stop()


@asynccontextmanager
async def running_gateway(rig: Rig) -> AsyncIterator[Gateway]:
    """Run the gateway with the models that the rig has."""
    for model in rig.models.values():
        if model.socket:
            await model.open_socket()
    gateway = rig.gateway = Gateway(rig.write())
    task = asyncio.create_task(gateway.run())
    await wait_until(lambda: gateway.listens or task.done())
    try:
        yield gateway
    finally:
        gateway.stop()
        await task
        for model in rig.models.values():
            await model.close()


async def wait_until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait for what tasks beside this one do."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        await asyncio.sleep(0.01)
