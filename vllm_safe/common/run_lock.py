"""A lock for commands of which only one may run at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vllm_safe.common.paths import RUN


@contextmanager
def hold_lock(name: str, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock /run/vllm-safe/NAME.lock while the body runs. When another process holds it, call `on_wait` and wait.

    The kernel releases the lock when the process ends, in whatever way. Raises OSError.
    """
    RUN.mkdir(mode=0o755, exist_ok=True)
    handle = os.open(RUN / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
