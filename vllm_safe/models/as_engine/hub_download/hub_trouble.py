"""What can go wrong with a hub, and how long to go on trying."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Mapping

_FOREVER = 1e6  # seconds; a hub that says more is not waited for anyway


class HubTrouble(Exception):
    """Why it cannot go on. `kind` is a key of the table in vllm_safe/models/fetch_decision.py, `details` fill its text."""

    def __init__(self, kind: str, **details: object) -> None:
        super().__init__(kind)
        self.kind = kind
        self.details = details


_WORTH_ANOTHER_TRY = {
    "busy": "the hub is busy",
    "broken": "the connection to the hub failed",
    "dns": "the hub's name is not found",
    "server": "the hub has a fault",
}


class Patience:
    """How often a step is tried again without a byte gained between, and how long a busy hub is waited for. All in seconds."""

    def __init__(self, delays: tuple[float, ...], longest_wait: float, tell: Callable[[str], None]) -> None:
        self._delays = delays
        self._wait_left = longest_wait
        self._tell = tell
        self._failures = 0

    def gained(self) -> None:
        """Bytes have come: failures before them do not count any more."""
        self._failures = 0

    def wait_after(self, error: Exception) -> None:
        """Wait until it is worth trying again. Raises Trouble if it is not, or not any more."""
        trouble, leave_alone = understand_hub_error(error)
        if trouble.kind not in _WORTH_ANOTHER_TRY or self._failures >= len(self._delays) or leave_alone > self._wait_left:
            raise trouble from error
        delay = max(self._delays[self._failures], leave_alone)
        self._failures += 1
        self._wait_left -= leave_alone
        self._tell(f"{_WORTH_ANOTHER_TRY[trouble.kind]}: trying again in {delay:.0f} s")
        time.sleep(delay)


def understand_hub_error(error: Exception) -> tuple[HubTrouble, float]:
    """What an exception of the hub's client means, and for how many seconds the hub asks to be left alone."""
    response = getattr(error, "response", None)
    if response is None:
        return _network_trouble(error), 0.0
    if response.status_code == 429:
        seconds = _retry_after(response.headers)
        return HubTrouble("busy", seconds=seconds), seconds
    return _trouble_of(response.status_code, response.headers), 0.0


def _trouble_of(status: int, headers: Mapping[str, str]) -> HubTrouble:
    said = headers.get("X-Error-Message", "")
    if status == 408 or status >= 500:
        return HubTrouble("server", status=status)
    if status == 401 and "Invalid credentials" in said:
        return HubTrouble("token")
    if kind := {"GatedRepo": "gated", "RevisionNotFound": "revision", "RepoNotFound": "missing"}.get(headers.get("X-Error-Code", "")):
        return HubTrouble(kind)
    if status in {401, 404}:  # 401 is also the answer to "no such model" for those who have no token
        return HubTrouble("missing")
    return HubTrouble("refused", status=status, said=said)


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds, from `Retry-After: 42` or the hub's own `RateLimit: "api";r=0;t=42`."""
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
