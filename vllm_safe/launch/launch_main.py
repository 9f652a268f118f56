"""vllm-safe-launch NAME: the main process of vllm@NAME.service. Started by systemd as user vllm, after vllm-safe-prepare@NAME.service."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from vllm_safe.common.errors import Failure, Misuse
from vllm_safe.common.notify import notify
from vllm_safe.contract import state_file
from vllm_safe.contract.launch_file import Launch, launch_file
from vllm_safe.launch.supervisor import journal_level, supervise


class _GaveUp(Misuse):
    """One automatic restart too many: systemd is not to try again, and what is wrong is what ended the last one."""


def main() -> None:
    """The console script: exit codes are 0 stopped, 1 failed, 2 can never work as configured (systemd does not try again)."""
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
    """Run the server of one model; the exit code. Misuse for what can never work."""
    if len(arguments) != 1:
        raise Misuse("vllm-safe-launch takes the name of one model", hint="It is started by: systemctl start vllm@NAME")
    plan = _read(arguments[0])
    if plan.refusal:
        raise (_GaveUp if plan.gave_up else Failure if plan.again else Misuse)(plan.refusal, hint=plan.hint)
    if plan.serve_file:
        _write_serve_file(plan)
    return supervise(plan, dict(plan.env or {}) | _api_key())


def _write_state(failure: Failure) -> None:
    """Nothing was started: for whoever asks why."""
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
        hint = f"systemctl status vllm-safe-prepare@{name} says why; systemctl start vllm@{name} makes it anew"
        raise Misuse(f"cannot read {path}: {reason}", hint=hint) from error


def _write_serve_file(plan: Launch) -> None:
    """The options as vLLM's --config FILE wants them: YAML, of which JSON is a part."""
    try:
        # In the unit's own RuntimeDirectory: nobody else can have put anything there.
        handle = os.open(plan.serve_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o640)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({key: _as_words(value) for key, value in (plan.serve_args or {}).items()}, file, indent=1, ensure_ascii=False)
    except OSError as error:
        raise Failure(f"cannot write {plan.serve_file}: {error.strerror}") from error


def _as_words(value: object) -> object:
    """A value in which mappings are text, as vLLM's options take them.

    vllm/utils/argparse_utils.py, load_config_file: of a mapping in a list it would make Python's words, and YAML takes 1e-05 for a string.
    """
    if isinstance(value, list):
        return [_as_words(item) for item in value]
    return json.dumps(value) if isinstance(value, dict) else value


def _api_key() -> dict[str, str]:
    """The key that clients must send, from the unit's credential: never in argv, nor in a file that others read."""
    if not (folder := os.environ.get("CREDENTIALS_DIRECTORY")):
        return {}
    try:
        key = Path(folder, "api-key").read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        # Serving without the key that was asked for would be worse than not serving.
        raise Failure(f"cannot read the API key: {error}") from error
    return {"VLLM_API_KEY": key} if key else {}
