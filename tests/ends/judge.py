"""The judgement whether the explanation of an end is right: everything that is expected of it (tests/cases/why/cases.json) must hold.

Each case has its source, and the run: status or signal, ready, args, env, command (a server other than vLLM). Then the expectation: `code`,
one of these; `tried_again`, whether the main process leaves it to systemd to try again (null: either); `change`, settings with their new
values; `says` and `never`, patterns that the text for people must have, and must not have.
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
# Codes that only say how the server ended, not why.
GENERIC = {"exited", "engine-died", "worker-died", "crashed", "signal", "unknown"}
# Advice that vllm-safe must not give: about pip or a home folder, from a template, or with an option spelled as on vLLM's command line.
NOT_OURS = re.compile(r"~/|pip3? install|\{\{|\}\}|(?<!\.)\.\.(?!\.)|`?gpu_memory_utilization|nvidia-cuda-toolkit|remount")
OPTION = re.compile(r"(?<![\w-])--(?:[a-z]+-)*(?:utilization|len|seqs|size|dtype|eager|parser|backend|reduce|code)\b")


def take(names: Iterable[str], checkout: Path = HERE) -> dict[str, dict[str, Any]]:
    """Return the explanations of these cases by a checkout."""
    asked = {name: CASES[name] | {"file": str(FOLDER / f"{name}.txt")} for name in names}
    live = Path(__file__).with_name("live.py")
    env = {"PYTHONPATH": str(checkout), "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-P", str(live)], input=json.dumps(asked), capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


def read_by_people(answer: Mapping[str, Any]) -> list[str]:
    """Return all lines of an explanation that people read."""
    why = answer["why"]
    changes = [f"{change['path']} {change['old']} -> {change['new']} {change['reason']}" for change in why["changes"]]
    return [answer["status"], answer["journal"], why["sentence"], *(fact["text"] for fact in why["evidence"]), *changes, why["hint"]]


def faults(case: Mapping[str, Any], answer: Mapping[str, Any]) -> list[str]:
    """Return the parts of the expectation that do not hold."""
    why, lines = answer["why"], read_by_people(answer)
    found = [] if why["code"] in case["code"] else [f"code {why['code']}, not {' or '.join(case['code'])}"]
    tried_again = answer["code"] != 2
    if case["tried_again"] not in {None, tried_again}:
        found.append("is tried again" if tried_again else "is not tried again")
    changes = {change["path"].removeprefix("models.m."): change["new"] for change in why["changes"]}
    found += [f"{path} is not changed to {new}" for path, new in case.get("change", {}).items() if changes.get(path) != new]
    text = "\n".join([why["sentence"], why["hint"], *lines[-1 - len(why["changes"]) : -1]])
    found += [f"does not say {words}" for words in case.get("says", ()) if not re.search(words, text, re.IGNORECASE)]
    return found + lies(case, answer) + not_ours(case, answer)


def lies(case: Mapping[str, Any], answer: Mapping[str, Any]) -> list[str]:
    """Return the statements that must not be made, but are."""
    lines = "\n".join(read_by_people(answer))
    return [f"says {words}" for words in case.get("never", ()) if re.search(words, lines, re.IGNORECASE)]


def not_ours(case: Mapping[str, Any], answer: Mapping[str, Any]) -> list[str]:
    """Return advice that vllm-safe must not give."""
    lines = "\n".join(read_by_people(answer))
    options = () if case.get("command") else OPTION.finditer(lines)
    return [f"says {match[0]}" for match in (*NOT_OURS.finditer(lines), *options)]


def with_one_voice(answer: Mapping[str, Any]) -> bool:
    """Return whether Status:, the journal's last line and `why` have the same words."""
    return len({answer["status"], answer["why"]["sentence"], answer["journal"]}) == 1


def grade(case: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
    """Return "right" if the whole expectation holds, "vague" if the code only says how it ended and nothing is false, else "misleading"."""
    if not faults(case, answer):
        return "right"
    return "vague" if answer["why"]["code"] in GENERIC and not lies(case, answer) and not answer["why"]["changes"] else "misleading"
