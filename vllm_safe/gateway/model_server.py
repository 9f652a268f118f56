"""The connections to the servers of the models."""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import ClientConnectorError, ClientError, ClientResponse, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from vllm_safe.contract.gateway_file import GatewayModel
from vllm_safe.gateway.request_body import RequestBody

_IDLE = 4.0  # seconds that a connection is kept for the next request; vLLM closes it after 5
_CONNECT = 5.0  # seconds
CONNECTION_ONLY = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_OF_THE_GATEWAY = CONNECTION_ONLY | {"host", "expect"}


class Unanswered(Exception):
    """The server closed the connection, or refused it, before it answered. refused: nothing listens there."""

    def __init__(self, reason: str, *, refused: bool) -> None:
        self.reason, self.refused = reason, refused
        super().__init__(reason)


class ModelServers:
    """Connections to all servers."""

    def __init__(self) -> None:
        connector = TCPConnector(limit=0, keepalive_timeout=_IDLE)
        self._session = ClientSession(
            connector=connector,
            cookie_jar=DummyCookieJar(),
            auto_decompress=False,
            timeout=ClientTimeout(total=None, sock_connect=_CONNECT),
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent", "Content-Type"),
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def ask(self, model: GatewayModel, request: web.BaseRequest, body: RequestBody) -> ClientResponse:
        """Pass a request on. Return the answer when it begins. Raises Unanswered, and Refused if the client is at fault."""
        host, port = model.address
        url = URL(f"http://{f'[{host}]' if ':' in host else host}:{port}{request.raw_path}", encoded=True)
        headers = passed_on(request.headers, _OF_THE_GATEWAY)
        try:
            return await self._session.request(request.method, url, headers=headers, data=body.pieces(), allow_redirects=False)
        except (ClientError, OSError) as error:
            if body.trouble is not None:
                raise body.trouble from error
            raise Unanswered(str(error) or "it closed the connection", refused=isinstance(error, ClientConnectorError)) from error


def passed_on(headers: CIMultiDictProxy[str], left_out: Iterable[str]) -> CIMultiDict[str]:
    """Return the headers to pass on: all but those of this connection (RFC 9110, section 7.6.1)."""
    named = {name.strip().lower() for value in headers.getall("Connection", ()) for name in value.split(",")}
    kept = CIMultiDict(headers)
    for name in {key for key in kept if key.lower() in left_out or key.lower() in named}:
        kept.popall(name, None)
    return kept
