"""Whether what is said of an end is right: all of what is expected of it (tests/cases/why/cases.json) holds.

Each case has its source, and what was run: status or signal, ready, args, env, command (another server than vLLM). Then what is expected:
`code`, one of these; `tried_again`, whether the main process leaves it to systemd to try again (null: either); `change`, settings and their
new values; `says` and `never`, patterns that are in what a person reads, and that are not.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[2]
FOLDER = HERE / "tests/cases/why"
CASES: dict[str, dict[str, Any]] = json.loads((FOLDER / "cases.json").read_text(encoding="utf-8"))
# Codes that only say how it ended.
GENERIC = {"exited", "engine-died", "worker-died", "crashed", "signal", "unknown"}
# Advice that is none of ours: what is of pip, of a home folder, of a template, or an option as vLLM's command line spells it.
NOT_OURS = re.compile(r"~/|pip3? install|\{\{|\}\}|(?<!\.)\.\.(?!\.)|`?gpu_memory_utilization|nvidia-cuda-toolkit|remount")
OPTION = re.compile(r"(?<![\w-])--(?:[a-z]+-)*(?:utilization|len|seqs|size|dtype|eager|parser|backend|reduce|code)\b")


def take(names: Iterable[str], checkout: Path = HERE) -> dict[str, dict[str, Any]]:
    """What a checkout says of these cases."""
    asked = {name: CASES[name] | {"file": str(FOLDER / f"{name}.txt")} for name in names}
    live = Path(__file__).with_name("live.py")
    env = {"PYTHONPATH": str(checkout), "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-P", str(live)], input=json.dumps(asked), capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


def read_by_people(said: Mapping[str, Any]) -> list[str]:
    """All lines of it."""
    why = said["why"]
    changes = [f"{change['path']} {change['old']} -> {change['new']} {change['reason']}" for change in why["changes"]]
    return [said["status"], said["journal"], why["sentence"], *(fact["text"] for fact in why["evidence"]), *changes, why["hint"]]


def faults(case: Mapping[str, Any], said: Mapping[str, Any]) -> list[str]:
    """What of the expectation does not hold."""
    why, lines = said["why"], read_by_people(said)
    found = [] if why["code"] in case["code"] else [f"code {why['code']}, not {' or '.join(case['code'])}"]
    tried_again = said["code"] != 2
    if case["tried_again"] not in {None, tried_again}:
        found.append("is tried again" if tried_again else "is not tried again")
    changes = {change["path"].removeprefix("models.m."): change["new"] for change in why["changes"]}
    found += [f"{path} is not changed to {new}" for path, new in case.get("change", {}).items() if changes.get(path) != new]
    answer = "\n".join([why["sentence"], why["hint"], *lines[-1 - len(why["changes"]) : -1]])
    found += [f"does not say {words}" for words in case.get("says", ()) if not re.search(words, answer, re.IGNORECASE)]
    return found + lies(case, said) + not_ours(case, said)


def lies(case: Mapping[str, Any], said: Mapping[str, Any]) -> list[str]:
    """What must not be said, and is."""
    lines = "\n".join(read_by_people(said))
    return [f"says {words}" for words in case.get("never", ()) if re.search(words, lines, re.IGNORECASE)]


def not_ours(case: Mapping[str, Any], said: Mapping[str, Any]) -> list[str]:
    """Advice that is none of ours."""
    lines = "\n".join(read_by_people(said))
    options = () if case.get("command") else OPTION.finditer(lines)
    return [f"says {match[0]}" for match in (*NOT_OURS.finditer(lines), *options)]


def with_one_voice(said: Mapping[str, Any]) -> bool:
    """Whether Status:, the journal's last line and `why` say the same words."""
    return len({said["status"], said["why"]["sentence"], said["journal"]}) == 1


def grade(case: Mapping[str, Any], said: Mapping[str, Any]) -> str:
    """Right: all holds. Vague: a code that only says how it ended, and nothing that is said is false. Else misleading."""
    if not faults(case, said):
        return "right"
    return "vague" if said["why"]["code"] in GENERIC and not lies(case, said) and not said["why"]["changes"] else "misleading"
