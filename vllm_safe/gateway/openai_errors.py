"""Errors in the form that clients of OpenAI's API read: as an answer, and as an event of a stream."""

from __future__ import annotations

import json
from http import HTTPStatus

from aiohttp import web

from vllm_safe.common.printable_text import printable

ANY_ORIGIN = {"Access-Control-Allow-Origin": "*"}  # pages of all origins may read answers: vLLM's default (--allowed-origins)
_KINDS = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error"}


class Refused(Exception):
    """A request that gets no answer of a model.

    retry_after: seconds after which it may have one; None: not before somebody did something, and OpenAI's own client does not try again.
    """

    def __init__(self, status: HTTPStatus, message: str, *, code: str = "", retry_after: float | None = None) -> None:
        self.status, self.code, self.retry_after = status, code, retry_after
        self.message = printable(message)
        super().__init__(self.message)


def error_object(refused: Refused) -> dict[str, object]:
    """Return the object that clients read."""
    kind = _KINDS.get(refused.status, "invalid_request_error" if refused.status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error")
    return {"error": {"message": refused.message, "type": kind, "param": None, "code": refused.code or None}}


def error_answer(refused: Refused) -> web.Response:
    """Return the answer to a request."""
    headers = {} if refused.retry_after is not None else {"x-should-retry": "false"}
    if refused.retry_after is not None and refused.status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(min(max(round(refused.retry_after), 1), 3600))
    if refused.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if headers:
        headers["Access-Control-Expose-Headers"] = ", ".join(headers)  # else a page in a browser does not see them
    return json_answer(error_object(refused), refused.status, headers)


def error_event(refused: Refused) -> bytes:
    """Return the event that ends a stream. It begins with an empty line: the event before it may have been cut off."""
    return b"\n\ndata: " + json.dumps(error_object(refused)).encode() + b"\n\n"


def json_answer(content: object, status: int = HTTPStatus.OK, headers: dict[str, str] | None = None) -> web.Response:
    """Return an answer of JSON."""
    body = json.dumps(content).encode()
    return web.Response(body=body, status=status, content_type="application/json", headers={**ANY_ORIGIN, **(headers or {})})


def preflight_answer(wanted: str) -> web.Response:
    """Return the answer to a browser that asks whether a page may send a request. wanted: the headers that the page would send."""
    headers = {"Access-Control-Allow-Methods": "GET, HEAD, POST", "Access-Control-Max-Age": "600"}
    return web.Response(headers={**ANY_ORIGIN, **headers, **({"Access-Control-Allow-Headers": wanted} if wanted else {})})
