"""Scenarios of a model that loses a process or has no room on its GPU: detected in time, explained, and restarted where that may help."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

from tests.beds.tiny_model import SENTENCE
from tests.gpu.box import ENGINE, MIB, Box, Figures, Wrong, run, wait_for

RESTART = 30.0  # seconds, RestartSec= of vllm@.service


def _victim(box: Box, name: str, who: str) -> int:
    """Return the PID of the process to kill or stop: a worker, the engine core, or the API server once it has an engine."""
    pids = box.pids(name)
    named = {"worker": "VLLM::Worker", "core": "VLLM::EngineCor", "api": "VLLM::EngineCor"}[who]
    found = [pid for pid, comm in pids.items() if comm.startswith(named)]
    if not found or who != "api":
        return found[-1] if found else 0
    main = int(box.shown(name)["MainPID"])
    return next((pid for pid in pids if _parent(pid) == main), 0)


def _parent(pid: int) -> int:
    with suppress(OSError), open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:  # noqa: PTH123
        return int(file.read().rpartition(") ")[2].split()[1])
    return 0


def falls_out(name: str, who: str, number: signal.Signals, *, loading: bool, again: bool) -> Callable[[Box], Figures]:
    """Return a scenario in which a process is killed or stopped: it is detected in time, and the whole unit is ended and restarted."""

    def waits(box: Box) -> bool:
        return box.shown(name)["SubState"] == "auto-restart"

    def show(box: Box) -> Figures:
        if loading:
            run(["systemctl", "start", "--no-block", f"vllm@{name}"])
            wait_for(f"{who} of {name} is there", lambda: _victim(box, name, who) > 0, 120)
        else:
            box.must_start(name)
        pids = box.pids(name)
        os.kill(_victim(box, name, who), number)
        figures: Figures = {"ended after": round(wait_for(f"{name} has ended", partial(waits, box), 60), 1)}
        left = [pid for pid in pids if os.path.exists(f"/proc/{pid}")]  # noqa: PTH110
        if left:
            raise Wrong(f"{name} has ended, and {len(left)} of its processes are there")
        why = box.why(name)
        figures |= {"code": why["code"], "said": why["sentence"]}
        if again:
            ready = wait_for(f"{name} serves again", lambda: box.shown(name)["ActiveState"] == "active", RESTART + 120)
            if box.ask(name, SENTENCE[:15], 20) != SENTENCE[15:35]:
                raise Wrong(f"{name} answers wrong after its restart")
            figures["serves again after"] = round(ready, 1)
        box.stop(name)
        return figures

    return show


@contextmanager
def filled(card: int, leave: int) -> Iterator[None]:
    """Run another program that uses all memory of a GPU except `leave` bytes."""
    code = (
        "import sys, torch, time; free, _ = torch.cuda.mem_get_info(); "
        "held = torch.empty(free - int(sys.argv[1]), dtype=torch.uint8, device='cuda'); print('held', flush=True); time.sleep(600)"
    )
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": str(card)}
    program = subprocess.Popen([f"{ENGINE}/bin/python", "-c", code, str(leave)], env=env, stdout=subprocess.PIPE)
    try:
        if program.stdout is None or program.stdout.readline() != b"held\n":
            raise Wrong("the card could not be filled")
        yield
    finally:
        program.kill()
        program.wait()


def taken(box: Box) -> Figures:
    """Start a model on a GPU that another program fills: that is reported, and a retry works once the GPU is free."""
    with filled(0, 2048 * MIB):
        why = box.must_fail("taken")
        if why["code"] != "gpu-taken":
            raise Wrong(f"{why['code']}: {why['sentence']}")
        if box.shown("taken")["SubState"] != "auto-restart":
            raise Wrong(f"it is not tried again: {box.shown('taken')}")
    ready = wait_for("it serves when the card is free", lambda: box.shown("taken")["ActiveState"] == "active", RESTART + 150)
    box.stop("taken")
    return {"said": why["sentence"], "changes": [change["path"] for change in why["changes"]], "serves after": round(ready, 1)}


def memory_while_serving(box: Box) -> Figures:
    """Make CUDA run out of memory at a request."""
    box.must_start("served")
    with filled(0, 1024 * MIB):
        with suppress(OSError, KeyError, ValueError):
            box.ask("served", "ab" * 4000, 1, prompt_logprobs=1, timeout=60)
        # vLLM may refuse that one request and continue, which is fine, too.
        gone = box.shown("served")["ActiveState"] != "active" or _ends_within(box, "served", 30)
        why = box.why("served") if gone else {}
    box.stop("served")
    if why and why["code"] != "cuda-memory":
        raise Wrong(f"{why['code']}: {why['sentence']}")
    return {"ended": gone, "said": why.get("sentence", "")}


def _ends_within(box: Box, name: str, seconds: float) -> bool:
    with suppress(Wrong):
        wait_for(f"{name} ends", lambda: box.shown(name)["ActiveState"] != "active", seconds)
        return True
    return False


def cache_too_small(box: Box) -> Figures:
    """Start a model whose KV cache does not hold one request of full length: the advice has vLLM's own figure."""
    why = box.must_fail("short")
    status = box.shown("short")
    change = next((change for change in why["changes"] if change["path"].endswith("max-model-len")), None)
    if why["code"] != "kv-cache-too-small" or change is None or status["SubState"] == "auto-restart":
        raise Wrong(f"{why['code']}: {why['sentence']} {why['changes']} {status}")
    return {"said": why["sentence"], "change": f"{change['old']} -> {change['new']}", "status": status["StatusText"]}
