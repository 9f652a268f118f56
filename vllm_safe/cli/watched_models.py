"""The models that `status` and `top` show: those that are configured and those that run, with the verdicts on those that do not."""

from __future__ import annotations

from pathlib import Path

import click

from vllm_safe.common.errors import ConfigError, Failure
from vllm_safe.config.reader import load
from vllm_safe.record.run_reader import list_runs
from vllm_safe.report.judged_run import judge_run
from vllm_safe.status.status_facts import read_model_status, running_models
from vllm_safe.status.status_lines import ModelStatus


class WatchedModels:
    """Every model, or the one asked for. Raises Failure if there is no such model. Verdicts on finished runs are cached."""

    def __init__(self, name: str | None, config_path: Path) -> None:
        self._asked = name
        self._verdicts: dict[str, str] = {}
        self._configured = _configured(config_path)
        if name is not None and not self.read():
            raise Failure(f"there is no model {name}", hint=f"Configured models: {', '.join(self._configured) or 'none'}.")

    def read(self) -> tuple[ModelStatus, ...]:
        """Return the present status of each model."""
        names = dict.fromkeys([*self._configured, *running_models()])
        return read_model_status(name for name in names if self._asked in {None, name})

    def why(self, seen: ModelStatus) -> str:
        """Return the verdict on the last run of a model that is not running, or "" if this user may not read the run."""
        if seen.active not in {"failed", "inactive"} and seen.sub != "auto-restart":
            return ""
        try:
            for run in list_runs(seen.name)[:1]:
                if run not in self._verdicts:
                    recorded, verdict = judge_run(seen.name, run)
                    if recorded.end is None:  # the recorder has not written the end, and may never do so: not cached
                        return verdict.sentence if verdict.code != "running" else ""
                    self._verdicts[run] = verdict.sentence
                return self._verdicts[run]
        except Failure:
            pass
        return ""


def _configured(config_path: Path) -> tuple[str, ...]:
    """Return the configured models. If the configuration has an error, print it: running models are shown all the same."""
    try:
        return tuple(load(config_path).models)
    except ConfigError as error:
        click.echo(f"{error.message}\n  running models are shown all the same", err=True)
        return ()
