"""The launch file: the input of the main process of vllm@NAME.service, decided by `vllm-safe apply NAME` just before.

Root writes it (decide/serve_command.py), the main process of the service reads it. Standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vllm_safe.contract.default_times import DEFAULT_TIMES

LAUNCH_FOLDER = Path("/run/vllm-safe/launch")


def launch_file(name: str) -> Path:
    """Return the path of the launch file of a model: root:vllm 0640."""
    return LAUNCH_FOLDER / f"{name}.json"


class Launch(NamedTuple):
    """One start of one server. Times are in seconds.

    With a `refusal`, nothing is started: the main process reports the refusal and the hint, and exits. This is a named tuple because the
    module dataclasses alone would cost the main process 1.3 MB.
    """

    name: str
    refusal: str | None = None  # one line: the reason why this start cannot work
    hint: str = ""  # one line: the remedy
    again: bool = False  # the refusal may not apply to the next start: exit status 1, and systemd tries again; otherwise 2
    gave_up: bool = False  # the refusal is due to too many automatic restarts
    restart: int = 0  # the number of this automatic restart, of those that count; 0: started by a person, or none counts
    pause: float = 0.0  # the wait before the server is started; grows with `restart`
    profile: str = ""  # the profile whose environment, options and times are in this file: for the recorder
    argv: tuple[str, ...] = ()
    env: Mapping[str, str] | None = None  # the server's whole environment, except the key, which comes from the credential `api-key`
    serve_file: str = ""  # the file to which serve_args are written before argv is run, or "" for a `command:` server
    serve_args: Mapping[str, Any] | None = None  # the content of serve_file; JSON is YAML
    checkpoint: str = ""  # the directory of the model's files, or ""
    health: str = ""  # the URL that answers 200 when the server is ready
    metrics: str = ""  # the URL of vLLM's counters, or "": then only health and processes can be watched
    completions: str = ""  # the URL that is asked for one token before the unit counts as started, and when no counter moves; or ""
    textfile: str = ""  # the directory for the recorder's metrics (metrics.textfile), or ""
    oom_score_adj: int = 0  # applies to the server, never to the main process that watches it
    io_scheduling_class: str = ""  # applies to the server only; one of systemd's names, or "": that of the main process
    nodes: tuple[str, ...] = ()  # the machines that serve the model together; (): this one alone
    rank: int = 0  # the place of this machine among them, 0 for the first, which accepts requests
    nodes_port: int = 0  # the port of the first machine to which the main processes of the others connect
    nodes_public: bool = False  # whether their addresses may be public
    agreed: Mapping[str, str] | None = None  # the values that must be the same on all of them, by name
    start_timeout: float = DEFAULT_TIMES["start_timeout"]  # the time until `health` must have answered
    stall_timeout: float = DEFAULT_TIMES["stall_timeout"]  # the longest time without any progress while loading
    hang_timeout: float = DEFAULT_TIMES["hang_timeout"]  # the longest time without a sign of life while serving
    stop_grace: float = DEFAULT_TIMES["stop_grace"]  # the time that running requests have after SIGTERM
    request: int = 0  # the systemd job of the client's connection that started the model; 0: a person started it, and it stays up
    idle_timeout: float = 0.0  # if a request started the model, it ends after this time without a request; 0: it stays up
    port: int = 0  # of a server without `metrics`, where each connection counts as a request
    summary: tuple[str, ...] = ()  # lines for the journal: the decisions and their reasons

    @property
    def url(self) -> str:
        """The base URL of the server, derived from `health`: "http://127.0.0.1:8000"."""
        scheme, _, rest = self.health.partition("://")
        return f"{scheme}://{rest.partition('/')[0]}"

    def to_json(self) -> str:
        """Return the text of the launch file."""
        return json.dumps(self._asdict(), default=dict, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Launch:
        """Read the text that `to_json` wrote. Raises ValueError for any other text."""
        values = json.loads(text)
        try:
            nodes = tuple(values.get("nodes", ()))
            return cls(**values | {key: tuple(values[key]) for key in ("argv", "summary")} | {"nodes": nodes})
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(str(error)) from error
