"""A headless Chromium, driven over DevTools through the pipe of --remote-debugging-pipe: without a port, a driver or a library.

with Chromium() as browser:
    browser.open(path, width=400, dark=True)
    browser.evaluate("document.title"); browser.screenshot(Path("x.png")); browser.complaints
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import tempfile
import time
from base64 import b64decode
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

PROGRAM = "chromium"
_OPTIONS = (
    "--headless",
    "--no-sandbox",  # the page is root's own, and the browser reaches no network
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--proxy-server=127.0.0.1:9",  # every request of a page fails, and is noticed
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
_PATIENCE = 60  # seconds for one answer


class BrowserError(Exception):
    """Chromium did not carry out a command."""


class Chromium:
    """One browser with one page, which ends with the context."""

    def __init__(self) -> None:
        self.complaints: list[str] = []  # messages of the console, scripts and policies since the last `open`
        self._count = 0
        self._buffer = b""
        self._seen: list[str] = []

    def __enter__(self) -> Self:
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        theirs_in, self._to = os.pipe()
        self._from, theirs_out = os.pipe()
        # Chromium reads from file descriptor 3 and writes to 4. bash puts the pipes there, since they may have just these numbers here.
        command = f'exec 3<&{theirs_in} 4>&{theirs_out}; exec "$0" "$@"'
        argv = ["bash", "-c", command, PROGRAM, *_OPTIONS, f"--user-data-dir={self._profile.name}", "about:blank"]
        self._process = subprocess.Popen(
            argv, pass_fds=(theirs_in, theirs_out), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._session = ""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        self._session = ""
        with suppress(BrowserError, OSError):
            self._call("Browser.close")
        os.close(self._to)
        os.close(self._from)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._profile.cleanup()

    def open(self, path: Path, *, width: int, height: int = 800, dark: bool = False) -> None:
        """Show a file in a window of this size, and wait until it is drawn."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[theme])
        self.complaints.clear()
        self._seen.clear()
        self._call("Page.navigate", url=path.resolve().as_uri())
        deadline = time.monotonic() + _PATIENCE
        while "Page.loadEventFired" not in self._seen:
            self._read(deadline)
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def evaluate(self, expression: str) -> Any:  # noqa: ANN401 - any value of JSON
        """Return the value of an expression in the page, after waiting for a promise."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise BrowserError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """Write the page as a PNG: the whole page, or the part in the window."""
        answer = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(b64decode(answer["data"]))

    def pdf(self, path: Path) -> None:
        """Write the page as it is printed."""
        path.write_bytes(b64decode(self._call("Page.printToPDF", printBackground=False)["data"]))

    def _call(self, method: str, **parameters: object) -> dict[str, Any]:
        self._count += 1
        message: dict[str, object] = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + _PATIENCE
        while True:
            answer = self._read(deadline)
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result

    def _read(self, deadline: float) -> dict[str, Any]:
        """Return the next message, after noting the complaints in it."""
        while b"\0" not in self._buffer:
            if not select.select([self._from], [], [], max(0, deadline - time.monotonic()))[0]:
                raise BrowserError("Chromium does not answer")
            if not (more := os.read(self._from, 1 << 20)):
                raise BrowserError("Chromium has ended")
            self._buffer += more
        raw, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(raw)
        method = message.get("method", "")
        self._seen.append(method)
        details = message.get("params", {})
        if method in {"Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"}:
            self.complaints.append(json.dumps(details)[:500])
        if method == "Network.requestWillBeSent" and not details["request"]["url"].startswith(("file:", "about:")):
            self.complaints.append(f"asks for {details['request']['url']}")
        return message
