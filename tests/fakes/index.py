"""A package index on loopback that serves a folder of wheels (PEP 503), with the given faults.

python3 index.py FOLDER PORT [FAULT WHEEL]...    WHEEL: the beginning of a file's name
  breaks   sends half of the file and closes the connection, each time
  stalls   sends half of the file and then nothing, for a minute
  swaps    sends the file of that name in FOLDER/other instead
  closes   answers 401
"""

from __future__ import annotations

import re
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


class Index(ThreadingHTTPServer):
    """The server. `faults` has the fault of each file, by name."""

    def __init__(self, folder: Path, port: int, faults: dict[str, str]) -> None:
        """Listen on loopback."""
        self.folder, self.faults = folder, faults
        super().__init__(("127.0.0.1", port), Handler)

    def fault_of(self, file: str) -> str:
        """Return the fault with which a file is served, or ""."""
        return next((fault for start, fault in self.faults.items() if file.startswith(start)), "")


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Index
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        """Send the headers alone."""
        self.do_GET()

    def do_GET(self) -> None:
        """Send a page of links for /simple/NAME/, or a file for /files/NAME."""
        kind, _, name = unquote(self.path).strip("/").partition("/")
        if kind == "simple":
            self._send_links(name)
        else:
            self._send_file(self.server.folder / Path(name).name)

    def _send_links(self, name: str) -> None:
        files = [file.name for file in self.server.folder.glob("*.whl") if _normal(file.name.split("-")[0]) == _normal(name)]
        if not files:
            return self._answer(404)
        page = "".join(f'<a href="/files/{file.replace("+", "%2B")}">{file}</a>\n' for file in files)
        return self._answer(200, page.encode(), "text/html")

    def _send_file(self, file: Path) -> None:
        fault = self.server.fault_of(file.name)
        if fault == "closes":
            return self._answer(401)
        if not file.exists():
            return self._answer(404)
        content = (file.parent / "other" / file.name if fault == "swaps" else file).read_bytes()
        if fault not in {"breaks", "stalls"} or self.command == "HEAD":
            return self._answer(200, content)
        self._head(200, len(content), "application/octet-stream")
        self.wfile.write(content[: len(content) // 2])
        self.wfile.flush()
        time.sleep(60 if fault == "stalls" else 0)
        self.close_connection = True
        return None

    def _answer(self, status: int, content: bytes = b"", kind: str = "application/octet-stream") -> None:
        self._head(status, len(content), kind)
        if self.command != "HEAD":
            self.wfile.write(content)

    def _head(self, status: int, length: int, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        self.end_headers()


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> None:
    """Serve until killed."""
    folder, port, *faults = sys.argv[1:]
    Index(Path(folder), int(port), dict(zip(faults[1::2], faults[::2], strict=True))).serve_forever()


if __name__ == "__main__":
    main()
