"""What the package does beside a model on a card: limits, the recorder, the guard's steps, the fire drill."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping
from typing import Any

from tests.beds.tiny_model import SENTENCE
from tests.gpu.box import MIB, Box, Figures, Wrong, cards, run, wait_for


def little_ram(box: Box) -> Figures:
    """14 GB of weights under 4 GB of RAM: the page cache, locked memory and swap are within the limit, and nothing is killed."""
    start = box.start("little", 590)
    memory = box.memory("little") if start.ok else {}
    events = run(["cat", "/sys/fs/cgroup/vllm.slice/vllm@little.service/memory.events"], check=False).split()
    pace = box.pace("little", 32) if start.ok else 0
    box.stop("little")
    if not start.ok:
        raise Wrong(f"{start.status}; {start.phases}; {box.why('little')['sentence']}")
    return {
        "ready": start.seconds,
        "phases": start.phases,
        "memory GiB": memory,
        "events": dict(zip(events[::2], events[1::2], strict=True)),
        "tokens/s": pace,
    }


def recorded(box: Box) -> Figures:
    """What the recorder writes down of the cards is what nvidia-smi says."""
    before = cards()
    box.must_start("seen")
    time.sleep(12)  # it samples each ten seconds when nothing moves
    recorded = int(run(["cat", "/run/vllm-safe/gpus/seen"]).split()[0])
    shown = cards()
    box.stop("seen")
    wanted = shown[-1]
    if abs(recorded - wanted) > 0.02 * wanted + 16 * MIB:
        raise Wrong(f"recorded {recorded // MIB} MiB, nvidia-smi shows {[used // MIB for used in shown]} MiB")
    return {
        "recorded MiB": recorded // MIB,
        "nvidia-smi MiB": [used // MIB for used in shown],
        "before MiB": [used // MIB for used in before],
    }


_ACT = """
from vllm_safe.guard.guard_actions import CgroupControl
from vllm_safe.guard.guard_decision import GuardAction
import sys, time
unit, kinds = sys.argv[1], sys.argv[2].split(',')
hands = Hands()
for kind in kinds:
    if said := hands.do(Act(kind, unit, 'a test')): sys.exit(said)
    time.sleep(3 if kind == 'freeze' else 0.3)
"""


def guarded(box: Box) -> Figures:
    """The guard's own hands squeeze, freeze and thaw a model in the middle of answers: no step fails; then they kill it."""
    box.must_start("guarded")
    expected = box.ask("guarded", SENTENCE[:15], 1500, ignore_eos=True)
    unit = "vllm@guarded.service"
    steps = ",".join(["squeeze", *["freeze", "thaw"] * 5, "restore"])
    hands = subprocess.Popen(["/usr/lib/vllm-safe/bin/python", "-c", _ACT, unit, steps])
    start = time.monotonic()
    answers = [box.ask("guarded", SENTENCE[:15], 1500, ignore_eos=True)]
    while hands.poll() is None:
        answers.append(box.ask("guarded", SENTENCE[:15], 1500, ignore_eos=True))
    if hands.returncode or set(answers) != {expected}:
        raise Wrong(f"the guard's steps: {hands.returncode}; {len(set(answers) - {expected})} of {len(answers)} answers are others")
    took = time.monotonic() - start
    run(["/usr/lib/vllm-safe/bin/python", "-c", _ACT, unit, "kill"])
    ended = wait_for("it has ended", lambda: box.shown("guarded")["SubState"] == "auto-restart", 30)
    box.stop("guarded")
    return {"answers, all the same": len(answers), "seconds": round(took, 1), "frozen": "5 x 3 s", "killed after": round(ended, 1)}


def drill(_box: Box) -> Figures:
    """The fire drill on a machine with cards."""
    done = subprocess.run(["vllm-safe", "drill", "--seconds", "20", "--json"], capture_output=True, text=True, check=False, timeout=300)
    try:
        told: Mapping[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise Wrong(f"vllm-safe drill: {done.stderr.strip()[-300:]}") from None
    return {"exit status": done.returncode} | {key: value for key, value in told.items() if isinstance(value, str | int | float)}
