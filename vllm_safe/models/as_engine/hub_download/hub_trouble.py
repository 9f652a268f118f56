"""Failures of a hub, and how long to retry."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Mapping

_FOREVER = 1e6  # seconds; a longer Retry-After is not waited for anyway


class HubTrouble(Exception):
    """A failure that ends the download. `kind`: a key of the table in vllm_safe/models/hub_failure.py; `details` fill in its text."""

    def __init__(self, kind: str, **details: object) -> None:
        super().__init__(kind)
        self.kind = kind
        self.details = details


_WORTH_ANOTHER_TRY = {
    "busy": "the hub is busy",
    "broken": "the connection to the hub failed",
    "dns": "the hub's name cannot be resolved",
    "server": "the hub has an internal error",
}


class Patience:
    """A retry policy: the delays before retries without a byte received between, and the longest wait for a busy hub, in seconds."""

    def __init__(self, delays: tuple[float, ...], longest_wait: float, tell: Callable[[str], None]) -> None:
        self._delays = delays
        self._wait_left = longest_wait
        self._tell = tell
        self._failures = 0

    def gained(self) -> None:
        """Note that bytes were received: earlier failures no longer count."""
        self._failures = 0

    def wait_after(self, error: Exception) -> None:
        """Wait until a retry makes sense. Raises HubTrouble if it does not, or no longer does."""
        trouble, retry_after = understand_hub_error(error)
        if trouble.kind not in _WORTH_ANOTHER_TRY or self._failures >= len(self._delays) or retry_after > self._wait_left:
            raise trouble from error
        delay = max(self._delays[self._failures], retry_after)
        self._failures += 1
        self._wait_left -= retry_after
        self._tell(f"{_WORTH_ANOTHER_TRY[trouble.kind]}: retrying in {delay:.0f} s")
        time.sleep(delay)


def understand_hub_error(error: Exception) -> tuple[HubTrouble, float]:
    """Return what an exception of the hub's client means, and after how many seconds the hub allows a retry."""
    response = getattr(error, "response", None)
    if response is None:
        return _network_trouble(error), 0.0
    if response.status_code == 429:
        seconds = _retry_after(response.headers)
        return HubTrouble("busy", seconds=seconds), seconds
    return _trouble_of(response.status_code, response.headers), 0.0


def _trouble_of(status: int, headers: Mapping[str, str]) -> HubTrouble:
    message = headers.get("X-Error-Message", "")
    if status == 408 or status >= 500:
        return HubTrouble("server", status=status)
    if status == 401 and "Invalid credentials" in message:
        return HubTrouble("token")
    if kind := {"GatedRepo": "gated", "RevisionNotFound": "revision", "RepoNotFound": "missing"}.get(headers.get("X-Error-Code", "")):
        return HubTrouble(kind)
    if status in {401, 404}:  # without a token, 401 is also the response for a model that does not exist
        return HubTrouble("missing")
    return HubTrouble("refused", status=status, said=message)


def _retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds of `Retry-After: 42`, or of the hub's own `RateLimit: "api";r=0;t=42`."""
    limits = dict(part.strip().partition("=")[::2] for part in headers.get("RateLimit", "").split(";"))
    text = headers.get("Retry-After") or limits.get("t") or ""
    return min(float(text), _FOREVER) if text.isdecimal() else 0.0


def _network_trouble(error: BaseException) -> HubTrouble:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, socket.gaierror):
            return HubTrouble("dns", said=str(error))
        if isinstance(cause, ssl.SSLCertVerificationError):
            return HubTrouble("tls", said=cause.verify_message)
        cause = cause.__cause__ or cause.__context__
    return HubTrouble("broken", said=str(error))
