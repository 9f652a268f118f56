"""The launch file: all that the main process of vllm@NAME.service needs to know, decided by `vllm-safe apply NAME` just before.

Standard library only: written by the root side (decide/serve.py), read by the service's main process.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

LAUNCH_FOLDER = Path("/run/vllm-safe/launch")


def launch_file(name: str) -> Path:
    """Where the launch file of a model is: root:vllm 0640."""
    return LAUNCH_FOLDER / f"{name}.json"


@dataclass(frozen=True)
class Launch:
    """One start of one server. With a `refusal`, nothing is started: the unit says refusal and hint, and ends."""

    name: str
    refusal: str | None = None  # one line: why this start cannot work
    hint: str = ""  # one line: the way out
    again: bool = False  # the refusal may not hold the next time: exit 1, and systemd tries again; else 2
    argv: tuple[str, ...] = ()
    env: Mapping[str, str] | None = None  # the server's whole environment, less the key that comes from the credential `api-key`
    serve_file: str = ""  # where serve_args are written before argv is run, or "" for a `command:` server
    serve_args: Mapping[str, Any] | None = None  # the content of serve_file; JSON is YAML
    health: str = ""  # the URL that answers 200 when the server serves
    oom_score_adj: int = 0  # of the server, never of the main process that watches it
    start_timeout: float = 3600.0  # seconds until `health` must have answered
    stop_grace: float = 30.0  # seconds that running requests may take after SIGTERM
    summary: tuple[str, ...] = ()  # lines for the journal: what was decided, and why

    def to_json(self) -> str:
        """The launch file's text."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return json.dumps(values, default=dict, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Launch:
        """The launch that `to_json` wrote. ValueError if the text is anything else."""
        values = json.loads(text)
        try:
            return cls(**values | {key: tuple(values[key]) for key in ("argv", "summary")})
        except (TypeError, KeyError) as error:
            raise ValueError(str(error)) from error
