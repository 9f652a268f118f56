"""A fake hub on loopback, with the part of the API that huggingface_hub uses, and every way in which a hub fails.

It answers GET /api/models/ORG/NAME[/revision/REV] and, by a redirect to a second address (as the real hub's CDN), the files. Each fault in
`faults` is used once, for the next request whose path its pattern `where` matches.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import unquote

LARGE = 4096  # bytes; a file of at least this size counts as large, and has a sha256


@dataclass
class Fault:
    """One wrong answer. With `after`, the connection is closed after so many bytes of the body."""

    where: str
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    after: int = -1
    body: bytes | None = None
    hold: threading.Event | None = None  # an event to wait for before the connection is closed


@dataclass
class Request:
    """A request that was answered with `sent` bytes of body."""

    path: str
    headers: dict[str, str]
    status: int = 0
    sent: int = 0


class Hub:
    """A hub with one model. `commits` has the files of each commit, `branches` the commit of each branch."""

    def __init__(self, repo: str, files: dict[str, bytes], *, gated: str | bool = False, token: str = "") -> None:
        self.repo, self.gated, self.token = repo, gated, token
        self.commits: dict[str, dict[str, bytes]] = {}
        self.branches: dict[str, str] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.push(files)
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self})) for _ in range(2)]

    def push(self, files: dict[str, bytes]) -> str:
        """Make a commit with these files, and point `main` to it. Return the commit."""
        names = json.dumps({name: hashlib.sha256(data).hexdigest() for name, data in files.items()})
        commit = hashlib.sha1(names.encode(), usedforsecurity=False).hexdigest()
        self.commits[commit] = files
        self.branches["main"] = commit
        return commit

    @property
    def url(self) -> str:
        """The value for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self._servers[0].server_port}"

    @property
    def cdn(self) -> str:
        """The address that the files come from: another origin, which must not get the token."""
        return f"http://localhost:{self._servers[1].server_port}"

    def sent(self, name: str) -> int:
        """Return how many bytes of a file were sent in total."""
        return sum(request.sent for request in self.requests if request.path.startswith("/cdn/") and request.path.endswith(f"/{name}"))

    def __enter__(self) -> Self:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        """Answer requests until the client goes away, in the middle of an answer as well."""
        with suppress(ConnectionError):
            super().handle()

    def log_message(self, *args: object) -> None:
        """Log nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = self.hub
        self.request_record = Request(self.path, dict(self.headers.items()))
        hub.requests.append(self.request_record)
        fault = next((fault for fault in hub.faults if re.search(fault.where, self.path)), None)
        if fault:
            hub.faults.remove(fault)
            if fault.status:
                self._answer(fault.status, fault.body or b"{}", fault.headers)
                return
        path = unquote(self.path.partition("?")[0])
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._listing(match[1], match[2] or "main", fault)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(match[1], match[2], match[3])
        elif match := re.fullmatch(r"/cdn/([^/]+)/(.+)", path):
            self._file(hub.commits[match[1]][match[2]], fault)
        else:
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _known(self) -> bool:
        return bool(self.hub.token) and self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def _listing(self, repo: str, revision: str, fault: Fault | None) -> None:
        hub = self.hub
        if self.headers.get("Authorization") and not self._known():
            self._answer(401, b"{}", {"X-Error-Message": "Invalid credentials in Authorization header"})
            return
        if repo != hub.repo:  # the real hub answers 401 to unauthenticated clients, and 404 only to those that it knows
            code = {"X-Error-Code": "RepoNotFound"} if self._known() else {"X-Error-Message": "Invalid username or password."}
            self._answer(404 if self._known() else 401, b"{}", code)
            return
        commit = hub.branches.get(revision, revision)
        if commit not in hub.commits:
            self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return
        siblings = [_sibling(name, data) for name, data in hub.commits[commit].items()]
        answer = {"id": repo, "modelId": repo, "sha": commit, "gated": hub.gated, "private": False, "siblings": siblings}
        self._answer(200, json.dumps(answer).encode(), {"Content-Type": "application/json"}, fault)

    def _resolve(self, repo: str, revision: str, name: str) -> None:
        hub = self.hub
        commit = hub.branches.get(revision, revision)
        if hub.gated and not self._known():
            self._answer(401, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": f"Access to model {repo} is restricted."})
        elif repo != hub.repo or name not in hub.commits.get(commit, {}):
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        else:
            data = hub.commits[commit][name]
            row = _sibling(name, data)
            etag = row["lfs"]["sha256"] if "lfs" in row else row["blobId"]
            headers = {"X-Repo-Commit": commit, "X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))}
            self._answer(302, b"", {"Location": f"{hub.cdn}/cdn/{commit}/{name}", **headers})

    def _file(self, data: bytes, fault: Fault | None) -> None:
        data = data if fault is None or fault.body is None else fault.body
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if match is None:
            self._answer(200, data, {}, fault)
            return
        start, end = int(match[1]), min(int(match[2] or len(data)), len(data) - 1)
        headers = {"Content-Range": f"bytes {start}-{end}/{len(data)}"}
        self._answer(206, data[start : end + 1], headers, fault)

    def _answer(self, status: int, body: bytes, headers: dict[str, str], fault: Fault | None = None) -> None:
        self.request_record.status = status
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = fault is not None and 0 <= fault.after < len(body)
        part = body[: fault.after] if fault and cut else body
        self.wfile.write(part)
        self.wfile.flush()
        self.request_record.sent += len(part)
        if fault and cut:
            if fault.hold:
                fault.hold.wait(30)
            self.close_connection = True


def _sibling(name: str, data: bytes) -> dict[str, Any]:
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    row: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": blob}
    if len(data) >= LARGE:
        row["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return row
