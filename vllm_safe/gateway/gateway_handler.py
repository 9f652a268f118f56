"""The answer to each request: the gateway's own, or that of a model."""

from __future__ import annotations

import asyncio
import hmac
import math
import re
import time
from collections import Counter
from http import HTTPStatus
from typing import cast
from urllib.parse import unquote

from aiohttp import web

from vllm_safe.contract.gateway_file import GatewayFile, GatewayModel
from vllm_safe.gateway.client_answer import ClientAnswer
from vllm_safe.gateway.client_connection import ClientConnection, OpenConnections
from vllm_safe.gateway.gateway_metrics import GatewayFigures, render_gateway_metrics
from vllm_safe.gateway.model_server import ModelServers, Unanswered
from vllm_safe.gateway.openai_errors import Refused, json_answer, preflight_answer
from vllm_safe.gateway.request_body import KeptBytes, RequestBody
from vllm_safe.gateway.switchboard import Switchboard, Ticket, public_state

_PATH = re.compile(r"/v1(?:/[A-Za-z0-9_-][A-Za-z0-9_.-]*)+/?(?:\?[!-~]*)?", re.ASCII)  # no "..", nothing that decodes to another path
_ONE_MODEL = "/v1/models/"  # and the name, as the client writes it: some encode the slash of ORG/NAME
_BEFORE_NEWS = 2.0  # seconds before the first comment in a stream
_NEWS_EVERY = 5.0  # seconds between two comments
_TRIES = 5  # connections to a server for one request: a server that is about to stop must be started again
_SILENCE = 60.0  # seconds within which a client must send more of its body
_ENDS = "the gateway is being restarted: try again"
_LONGEST_QUOTE = 80  # characters of an unknown name that are repeated in the error


class GatewayHandler:
    """Answers requests. ending: the process is about to end."""

    def __init__(self, board: Switchboard, servers: ModelServers, connections: OpenConnections, key: str = "") -> None:
        self._board, self._servers, self._connections, self._key = board, servers, connections, key.encode()
        self._kept = KeptBytes()
        self._answers: Counter[tuple[str, int]] = Counter()
        self._started = int(time.time())
        self._served: dict[str, GatewayModel] = {}
        self._answering: set[ClientAnswer] = set()
        self.ending = False
        self.configure(board.settings)

    def configure(self, settings: GatewayFile) -> None:
        """Use other settings from now on."""
        self._served = {served: model for model in settings.models for served in model.served or (model.name,)}
        if settings is not self._board.settings:
            self._board.configure(settings)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        connection = cast("ClientConnection", request.protocol)
        connection.begin_answer(request.content)
        answer = ClientAnswer(request, connection)
        self._answering.add(answer)
        try:
            response = await self._answer_or_refuse(request, answer)
        except ConnectionError:
            response = answer.abandon()
        finally:
            self._answering.discard(answer)
            connection.end_answer()
        if self.ending:
            response.force_close()
        self._answers[answer.model, response.status] += 1
        return response

    async def end(self, patience: float) -> None:
        """Refuse the requests that wait for a model, and give running answers `patience` seconds to end."""
        self.ending = True
        self._board.close(Refused(HTTPStatus.SERVICE_UNAVAILABLE, _ENDS, retry_after=2))
        await self._wait_for_answers(patience)
        for answer in self._answering:
            answer.cut = Refused(HTTPStatus.BAD_GATEWAY, "the gateway was stopped in the middle of the answer: try again", retry_after=2)
            if answer.task is not None:
                answer.task.cancel()
        await self._wait_for_answers(1)

    async def _wait_for_answers(self, seconds: float) -> None:
        if tasks := {answer.task for answer in self._answering if answer.task is not None}:
            await asyncio.wait(tasks, timeout=seconds)

    async def _answer_or_refuse(self, request: web.BaseRequest, answer: ClientAnswer) -> web.StreamResponse:
        try:
            return await self._answer(request, answer)
        except Refused as refused:
            return await answer.refuse(refused)
        except asyncio.CancelledError:
            if answer.cut is None or answer.task is None:
                raise  # the client is gone
            answer.task.uncancel()
            return await answer.refuse(answer.cut)

    async def _answer(self, request: web.BaseRequest, answer: ClientAnswer) -> web.StreamResponse:
        path = request.raw_path.partition("?")[0]
        reading = request.method in {"GET", "HEAD"}
        if self.ending:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, _ENDS, retry_after=2)
        if self._connections.full:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, f"more than {self._connections.most} connections are open", retry_after=5)
        if reading and path == "/health":
            return json_answer({"status": "ok"})
        if reading and path == "/metrics":
            return web.Response(text=self._metrics(), content_type="text/plain", charset="utf-8")
        looks_up = request.method != "POST" and path.startswith(_ONE_MODEL)  # such a request is never passed on, whatever the name is
        if not looks_up and not _PATH.fullmatch(request.raw_path):
            raise Refused(HTTPStatus.NOT_FOUND, "the gateway has /v1/..., /health and /metrics, and nothing else")
        if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            return preflight_answer(request.headers.get("Access-Control-Request-Headers", ""))  # a browser sends no key with it
        self._check_key(request)
        return self._show(path) if reading else await self._infer(request, answer)

    # --- the gateway's own answers

    @property
    def _listed(self) -> list[str]:
        """The names of the models that requests to this machine can reach."""
        return [name for name, model in self._served.items() if not model.first]

    def _check_key(self, request: web.BaseRequest) -> None:
        if not self._key:
            return
        kind, _, given = request.headers.get("Authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(errors="replace"), self._key):
            raise Refused(HTTPStatus.UNAUTHORIZED, "the gateway requires its API key (Authorization: Bearer KEY)", code="invalid_api_key")

    def _find(self, name: str) -> GatewayModel:
        if (model := self._served.get(name)) is not None:
            if model.first:
                message = f"{name} is served by several machines, and {model.first} accepts the requests: send them to the gateway there"
                raise Refused(HTTPStatus.MISDIRECTED_REQUEST, message, code="model_on_another_machine")
            return model
        quoted = name[:_LONGEST_QUOTE] + ("..." if len(name) > _LONGEST_QUOTE else "")
        there = ", ".join(self._listed) or "none"
        raise Refused(HTTPStatus.NOT_FOUND, f"there is no model {quoted!r}; the models are: {there}", code="model_not_found")

    def _show(self, path: str) -> web.Response:
        """Answer a request that only reads."""
        if path.rstrip("/") == "/v1/models":
            return json_answer({"object": "list", "data": [self._describe(name) for name in self._listed]})
        if path.startswith(_ONE_MODEL):
            name = unquote(path.removeprefix(_ONE_MODEL))
            self._find(name)
            return json_answer(self._describe(name))
        raise _without_model(f"GET {path}")

    def _describe(self, name: str) -> dict[str, object]:
        model = self._served[name]
        state = public_state(self._board.phase(model.name))
        return {
            "id": name,
            "object": "model",
            "created": self._started,
            "owned_by": "vllm-safe",
            "state": state,
            "on_demand": model.on_demand,
        }

    def _metrics(self) -> str:
        in_flight, waiting = self._board.counts()
        states = {model.name: public_state(self._board.phase(model.name)) for model in self._board.settings.models}
        return render_gateway_metrics(
            GatewayFigures(len(self._connections.all), self._answers, in_flight, waiting, states, self._board.switches)
        )

    # --- the answers of models

    async def _infer(self, request: web.BaseRequest, answer: ClientAnswer) -> web.StreamResponse:
        """Pass a request on to the model that its body names."""
        if request.method != "POST":
            raise _without_model(f"{request.method} {request.raw_path}")
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body of the request is compressed, which vLLM does not read")
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        body = RequestBody(request, self._kept, _SILENCE)
        try:
            model = self._find(await body.read_model())
            answer.model = model.name
            return await self._try(model, body, answer)
        finally:
            body.close()

    async def _try(self, model: GatewayModel, body: RequestBody, answer: ClientAnswer) -> web.StreamResponse:
        """Pass the request on until the model answers: again after a stop or a refused connection, and once more after a crash."""
        tries = broken = 0
        while True:
            began = time.time()
            try:
                return await self._have_turn(model, body, answer)
            except Unanswered as unanswered:
                tries += 1
                broken += not (unanswered.refused or self._board.was_stopped(model.name, began))
                if tries == _TRIES or broken > 1 or not body.repeatable:
                    message = f"the server of {model.name} did not answer: {unanswered.reason}. See: vllm-safe why {model.name}"
                    raise Refused(HTTPStatus.BAD_GATEWAY, message, retry_after=5) from unanswered
                if unanswered.refused:
                    self._board.doubt(model.name)

    async def _have_turn(self, model: GatewayModel, body: RequestBody, answer: ClientAnswer) -> web.StreamResponse:
        """Wait for the turn, and pass the request on. Raises Unanswered, Refused, and ConnectionError if the client is gone."""
        ticket = self._board.enter(model)
        try:
            if not ticket.served:
                await body.read_on()
                await self._wait(ticket, answer, news=body.streams)
            reply = await self._servers.ask(model, answer.request, body)
            try:
                return await answer.pass_on(reply)
            finally:
                reply.close()
        finally:
            self._board.leave(ticket)

    async def _wait(self, ticket: Ticket, answer: ClientAnswer, *, news: bool) -> None:
        """Wait for the turn of a request. news: meanwhile, send the state of the model to the client as comments."""
        limit = self._board.settings.wait
        began, pause = time.monotonic(), _BEFORE_NEWS
        while True:
            left = math.inf if limit is None else began + limit - time.monotonic()
            await asyncio.wait({ticket.turn}, timeout=max(min(pause, left), 0))
            if ticket.turn.done():
                ticket.turn.result()
                return
            text = self._board.news(ticket.model)
            if left <= pause:
                patience = self._board.patience(ticket.model)
                message = f"{text}; it was not ready within {limit:g} s (gateway.wait)"
                raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, message, code="model_loading", retry_after=patience)
            if news:
                await answer.comment(text)
                pause = _NEWS_EVERY


def _without_model(asked: str) -> Refused:
    return Refused(HTTPStatus.NOT_FOUND, f"the gateway does not know which model {asked[:_LONGEST_QUOTE]} is for")
