"""Scenarios of the package beside a model on a GPU: limits, the recorder, the guard's steps, the fire drill."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping
from typing import Any

from tests.beds.tiny_model import SENTENCE
from tests.gpu.box import MIB, Box, Figures, Wrong, cards, run, wait_for


def little_ram(box: Box) -> Figures:
    """Load 14 GB of weights with 4 GB of RAM: page cache, locked memory and swap stay within the limit, and nothing is killed."""
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
    """Compare the GPU memory that the recorder records with that of nvidia-smi."""
    before = cards()
    box.must_start("seen")
    time.sleep(12)  # the recorder samples every ten seconds while nothing changes
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
control = CgroupControl()
for kind in kinds:
    if error := control.do(GuardAction(kind, unit, 'a test')): sys.exit(error)
    time.sleep(3 if kind == 'freeze' else 0.3)
"""


def guarded(box: Box) -> Figures:
    """Squeeze, freeze, thaw and restore a model during answers with the guard's own code: no step fails. Then kill it."""
    box.must_start("guarded")
    expected = box.ask("guarded", SENTENCE[:15], 1500, ignore_eos=True)
    unit = "vllm@guarded.service"
    steps = ",".join(["squeeze", *["freeze", "thaw"] * 5, "restore"])
    steps_run = subprocess.Popen(["/usr/lib/vllm-safe/bin/python", "-c", _ACT, unit, steps])
    start = time.monotonic()
    answers = [box.ask("guarded", SENTENCE[:15], 1500, ignore_eos=True)]
    while steps_run.poll() is None:
        answers.append(box.ask("guarded", SENTENCE[:15], 1500, ignore_eos=True))
    if steps_run.returncode or set(answers) != {expected}:
        raise Wrong(f"the guard's steps: {steps_run.returncode}; {len(set(answers) - {expected})} of {len(answers)} answers differ")
    took = time.monotonic() - start
    run(["/usr/lib/vllm-safe/bin/python", "-c", _ACT, unit, "kill"])
    ended = wait_for("it has ended", lambda: box.shown("guarded")["SubState"] == "auto-restart", 30)
    box.stop("guarded")
    return {"answers, all the same": len(answers), "during seconds": round(took, 1), "frozen": "5 x 3 s", "killed after": round(ended, 1)}


def drill(_box: Box) -> Figures:
    """Run the fire drill on a machine with GPUs."""
    done = subprocess.run(["vllm-safe", "drill", "--seconds", "20", "--json"], capture_output=True, text=True, check=False, timeout=300)
    try:
        result: Mapping[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise Wrong(f"vllm-safe drill: {done.stderr.strip()[-300:]}") from None
    figures: Figures = {"exit status": done.returncode}
    return figures | {key: value for key, value in result.items() if isinstance(value, str | int | float) and key != "seconds"}
