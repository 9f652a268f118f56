"""A connection to the socket of a model, by which systemd starts it. Nothing is sent through it."""

from __future__ import annotations

import asyncio
import time

_TRIES = 3  # for 250 ms after a model has stopped, socket-proxyd closes new connections
_PAUSE = 0.5  # seconds


class WakeSocket:
    """A connection that is opened at once, and again if it is closed. `close` it when the model is ready. problem: why it is not open."""

    def __init__(self, path: str) -> None:
        self.opened = time.time()
        self.problem = ""
        self._task = asyncio.get_running_loop().create_task(self._keep(path))

    def close(self) -> None:
        """Close the connection. A start that has begun goes on."""
        self._task.cancel()

    async def _keep(self, path: str) -> None:
        problem = ""
        for _ in range(_TRIES):
            try:
                reader, writer = await asyncio.open_unix_connection(path)
            except OSError as error:
                problem = f"{path}: {error.strerror}"
            else:
                try:
                    problem = f"{path} was closed"
                    await reader.read()
                except OSError as error:
                    problem = f"{path}: {error.strerror}"
                finally:
                    writer.close()
            await asyncio.sleep(_PAUSE)
        self.problem = problem
