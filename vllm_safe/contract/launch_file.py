"""The launch file: all that the main process of vllm@NAME.service needs to know, decided by `vllm-safe apply NAME` just before.

Standard library only: written by the root side (decide/serve_command.py), read by the service's main process.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vllm_safe.contract.default_times import DEFAULT_TIMES

LAUNCH_FOLDER = Path("/run/vllm-safe/launch")


def launch_file(name: str) -> Path:
    """Where the launch file of a model is: root:vllm 0640."""
    return LAUNCH_FOLDER / f"{name}.json"


class Launch(NamedTuple):
    """One start of one server. With a `refusal`, nothing is started: the unit says refusal and hint, and ends. Times are in seconds.

    A named tuple: dataclasses alone would cost the main process 1.3 MB.
    """

    name: str
    refusal: str | None = None  # one line: why this start cannot work
    hint: str = ""  # one line: the way out
    again: bool = False  # the refusal may not hold the next time: exit 1, and systemd tries again; else 2
    gave_up: bool = False  # the refusal is that of one automatic restart too many
    restart: int = 0  # which automatic restart this is, of those that count; 0: started by a person
    pause: float = 0.0  # to wait before the server is started; grows with `restart`
    profile: str = ""  # whose environment, options and times are in this file: for the recorder
    argv: tuple[str, ...] = ()
    env: Mapping[str, str] | None = None  # the server's whole environment, less the key that comes from the credential `api-key`
    serve_file: str = ""  # where serve_args are written before argv is run, or "" for a `command:` server
    serve_args: Mapping[str, Any] | None = None  # the content of serve_file; JSON is YAML
    checkpoint: str = ""  # the folder of the model's files, or ""
    health: str = ""  # the URL that answers 200 when the server serves
    metrics: str = ""  # the URL of vLLM's counters, or "": health and processes are all there is to watch
    completions: str = ""  # the URL that one token is asked of before the unit counts as started, and when nothing moves; or ""
    textfile: str = ""  # the folder for the recorder's figures, or "": metrics.textfile
    oom_score_adj: int = 0  # of the server, never of the main process that watches it
    io_scheduling_class: str = ""  # likewise, in systemd's words; "": as the main process
    start_timeout: float = DEFAULT_TIMES["start_timeout"]  # until `health` must have answered
    stall_timeout: float = DEFAULT_TIMES["stall_timeout"]  # that a start may take without any progress
    hang_timeout: float = DEFAULT_TIMES["hang_timeout"]  # that a server may take without a sign of life
    stop_grace: float = DEFAULT_TIMES["stop_grace"]  # that running requests may take after SIGTERM
    summary: tuple[str, ...] = ()  # lines for the journal: what was decided, and why

    @property
    def url(self) -> str:
        """Where the server is, from where it answers: "http://127.0.0.1:8000"."""
        scheme, _, rest = self.health.partition("://")
        return f"{scheme}://{rest.partition('/')[0]}"

    def to_json(self) -> str:
        """The launch file's text."""
        return json.dumps(self._asdict(), default=dict, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Launch:
        """The launch that `to_json` wrote. ValueError if the text is anything else."""
        values = json.loads(text)
        try:
            return cls(**values | {key: tuple(values[key]) for key in ("argv", "summary")})
        except (TypeError, KeyError) as error:
            raise ValueError(str(error)) from error
