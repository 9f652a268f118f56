"""The program vllm-safe-launch NAME, main process of vllm@NAME.service: run as user vllm, after vllm-safe-prepare@NAME.service."""

from __future__ import annotations

import json
import os
import sys
import time

from vllm_safe.common.errors import Failure, Misuse
from vllm_safe.common.notify import notify
from vllm_safe.contract import state_file
from vllm_safe.contract.api_key import read_api_key
from vllm_safe.contract.launch_file import Launch, launch_file
from vllm_safe.launch.own_unit import journal_level
from vllm_safe.launch.supervisor import supervise


class _GaveUp(Misuse):
    """Too many automatic restarts: systemd must not try again. The cause is the one that ended the last start."""


def main() -> None:
    """Run the console script. Exit codes: 0 stopped, 1 failed, 2 can never work as configured (systemd does not try again)."""
    try:
        code = launch_model(sys.argv[1:])
    except Failure as failure:
        prefix = journal_level(3)
        lines = [f"vllm-safe: {failure.message}"] + ([f"  {failure.hint}"] if failure.hint else [])
        sys.stderr.write("".join(f"{prefix}{line}\n" for line in lines))
        notify(STATUS=". ".join(text for text in (failure.message, failure.hint) if text))
        _write_state(failure)
        code = failure.exit_code
    sys.exit(code)


def launch_model(arguments: list[str]) -> int:
    """Run the server of one model and return the exit code. Raises Misuse for a start that can never work, else Failure."""
    if len(arguments) != 1:
        raise Misuse("vllm-safe-launch takes the name of one model", hint="It is started by: systemctl start vllm@NAME")
    plan = _read(arguments[0])
    if plan.refusal:
        raise (_GaveUp if plan.gave_up else Failure if plan.again else Misuse)(plan.refusal, hint=plan.hint)
    if plan.serve_file:
        _write_serve_file(plan)
    return supervise(plan, dict(plan.env or {}) | _key_variable())


def _write_state(failure: Failure) -> None:
    """Write the state file for a start that ended before the server was started: `why` reads the reason there."""
    for name in sys.argv[1:2]:
        now, run = time.time(), os.environ.get("INVOCATION_ID", "")
        reason = ". ".join(text for text in (failure.message, failure.hint) if text)
        cause = "gave-up" if isinstance(failure, _GaveUp) else "refused"
        refused = state_file.State(name, run, os.getpid(), now, now, "ended", now, text=reason, cause=cause, reason=reason)
        if "/" not in name:
            state_file.write_state(refused)


def _read(name: str) -> Launch:
    path = launch_file(name)
    try:
        return Launch.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        hint = f"See systemctl status vllm-safe-prepare@{name}; systemctl start vllm@{name} writes the file again"
        raise Misuse(f"cannot read {path}: {reason}", hint=hint) from error


def _write_serve_file(plan: Launch) -> None:
    """Write the options for vLLM's --config FILE. The file is JSON, which is a subset of YAML. Raises Failure."""
    try:
        # The file is in the unit's own RuntimeDirectory, where no other user can have created anything.
        handle = os.open(plan.serve_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o640)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({key: _as_option_value(value) for key, value in (plan.serve_args or {}).items()}, file, indent=1, ensure_ascii=False)
    except OSError as error:
        raise Failure(f"cannot write {plan.serve_file}: {error.strerror}") from error


def _as_option_value(value: object) -> object:
    """Return a value with its mappings as JSON text, as vLLM's options expect them.

    vllm/utils/argparse_utils.py, load_config_file: it would format a mapping in a list with repr(), and YAML reads 1e-05 as a string.
    """
    if isinstance(value, list):
        return [_as_option_value(item) for item in value]
    return json.dumps(value) if isinstance(value, dict) else value


def _key_variable() -> dict[str, str]:
    key = read_api_key()
    return {"VLLM_API_KEY": key} if key else {}
