"""What is shown on real cards. A scenario has models and a function; it raises Wrong, or returns the figures for the table."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

from tests.beds.tiny_model import SENTENCE
from tests.gpu.box import ENGINE, LARGE, MIB, Box, Model, Wrong, cards, cards_are_free, run, wait_for

TP2: dict[str, Any] = {"tensor-parallel-size": 2}
EAGER: dict[str, Any] = {"enforce-eager": True}
# A share of the cards that leaves room for others beside it, whose coming and going vLLM's profiling would not bear.
SMALL: dict[str, Any] = {"kv-cache-memory-bytes": 256 * MIB, "gpu-memory-utilization": 0.05}
SOON = {"stall_timeout": "20s", "hang_timeout": "20s", "stop_grace": "5s"}
RESTART = 30.0  # seconds, RestartSec= of vllm@.service
Figures = dict[str, object]


class Scenario(NamedTuple):
    """gpus: how many it needs; alone: nothing may run beside it; swap: bytes of swap that it needs, as `swap.size`."""

    name: str
    models: tuple[Model, ...]
    show: Callable[[Box], Figures]
    gpus: int = 2
    alone: bool = False
    swap: str = ""


# --- several cards start


def _serves(box: Box, name: str, *, pace: bool = False) -> Figures:
    """It becomes ready, answers right, and leaves nothing on the cards."""
    start = box.must_start(name)
    figures: Figures = {
        "ready": start.seconds,
        "phases": start.phases,
        "memory": box.memory(name),
        "cards MiB": [used // MIB for used in cards()],
    }
    if pace:
        figures["tokens/s"] = [box.pace(name), box.pace(name, at_once=16)]
    figures["stop"] = box.stop(name)
    return figures


def _starts(name: str, *, pace: bool = False, twice: bool = False) -> Callable[[Box], Figures]:
    def show(box: Box) -> Figures:
        before = cards()
        first = _serves(box, name, pace=pace) | {"cards free after": cards_are_free(before)}
        return first | ({"second": _serves(box, name, pace=pace)} if twice else {})

    return show


def _side_by_side(box: Box) -> Figures:
    """Two models on a card each, started together; each sees its own alone."""
    before = cards()
    run(["systemctl", "start", "vllm@left", "vllm@right"], timeout=300)
    figures: Figures = {}
    for name in ("left", "right"):
        start = box.must_start(name)  # it runs: only the answer
        figures[name] = start.status
    used = [now - then for now, then in zip(cards(), before, strict=True)]
    if min(used[:2]) < 256 * MIB:
        raise Wrong(f"one card is not used: {used}")
    figures |= {"cards MiB": [size // MIB for size in used]}
    run(["systemctl", "stop", "vllm@left"])
    figures["left free after"] = cards_are_free([before[0], before[1] + 1024 * 1024 * MIB])
    if box.ask("right", SENTENCE[:15], 20) != SENTENCE[15:35]:
        raise Wrong("right answers wrong when left has gone")
    run(["systemctl", "stop", "vllm@right"])
    return figures | {"right free after": cards_are_free(before)}


def _spawn_and_fork(box: Box) -> Figures:
    """Workers that are spawned, and forked: at the same time, each model on two processors of its own."""
    figures: Figures = {}

    def measure(name: str) -> None:
        start = box.must_start(name, 590)
        figures[name] = {"ready": start.seconds, "phases": start.phases, "memory": box.memory(name), "processes": len(box.pids(name))}

    with ThreadPoolExecutor() as pool:
        list(pool.map(measure, ("spawn", "fork")))
    return figures | {"stop": {name: box.stop(name) for name in ("spawn", "fork")}}


# --- ends


def _victim(box: Box, name: str, who: str) -> int:
    """The process of a model that is to fall out: a worker, the engine's core, or the API server once it has an engine."""
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


def _falls_out(name: str, who: str, number: signal.Signals, *, loading: bool, again: bool) -> Callable[[Box], Figures]:
    """A process is killed or stopped: found in time, the whole unit ended, started anew."""

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


def _all_fall_out() -> Iterator[Scenario]:
    for loading in (True, False):
        for who, number in (("worker", signal.SIGKILL), ("worker", signal.SIGSTOP), ("core", signal.SIGKILL), ("api", signal.SIGKILL)):
            name = f"{who}-{number.name[3:].lower()}-{'loading' if loading else 'serving'}"
            show = _falls_out(name, who, number, loading=loading, again=who == "worker" and not loading)
            yield Scenario(name, (Model(name, {**TP2, **EAGER, **SMALL}, times=SOON),), show)


@contextmanager
def _filled(card: int, leave: int) -> Iterator[None]:
    """Another program has all of a card but `leave` bytes."""
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


def _taken(box: Box) -> Figures:
    """A card that another program fills: said so, and tried again, which then works."""
    with _filled(0, 2048 * MIB):
        why = box.must_fail("taken")
        if why["code"] != "gpu-taken":
            raise Wrong(f"{why['code']}: {why['sentence']}")
        if box.shown("taken")["SubState"] != "auto-restart":
            raise Wrong(f"it is not tried again: {box.shown('taken')}")
    ready = wait_for("it serves when the card is free", lambda: box.shown("taken")["ActiveState"] == "active", RESTART + 150)
    box.stop("taken")
    return {"said": why["sentence"], "changes": [change["path"] for change in why["changes"]], "serves after": round(ready, 1)}


def _memory_while_serving(box: Box) -> Figures:
    """CUDA runs out of memory at a request."""
    box.must_start("served")
    with _filled(0, 1024 * MIB):
        with suppress(OSError, KeyError, ValueError):
            box.ask("served", "ab" * 4000, 1, prompt_logprobs=1, timeout=60)
        # vLLM may refuse the one request and go on, which is as well.
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


def _cache_too_small(box: Box) -> Figures:
    """The KV cache does not hold one request of full length: the advice is vLLM's own figure."""
    why = box.must_fail("short")
    status = box.shown("short")
    change = next((change for change in why["changes"] if change["path"].endswith("max-model-len")), None)
    if why["code"] != "kv-cache-too-small" or change is None or status["SubState"] == "auto-restart":
        raise Wrong(f"{why['code']}: {why['sentence']} {why['changes']} {status}")
    return {"said": why["sentence"], "change": f"{change['old']} -> {change['new']}", "status": status["StatusText"]}


def _little_ram(box: Box) -> Figures:
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
        "memory": memory,
        "events": dict(zip(events[::2], events[1::2], strict=True)),
        "tokens/s": pace,
    }


def _recorded(box: Box) -> Figures:
    """What the recorder writes down of the cards is what nvidia-smi says."""
    before = cards()
    box.must_start("seen")
    time.sleep(12)  # it samples each ten seconds when nothing moves
    recorded = int(run(["cat", "/run/vllm-safe/gpus/seen"]).split()[0])
    shown = cards()
    box.stop("seen")
    wanted = shown[1]
    if abs(recorded - wanted) > 0.02 * wanted + 16 * MIB:
        raise Wrong(f"recorded {recorded // MIB} MiB, nvidia-smi shows {[used // MIB for used in shown]} MiB")
    return {
        "recorded MiB": recorded // MIB,
        "nvidia-smi MiB": [used // MIB for used in shown],
        "before MiB": [used // MIB for used in before],
    }


_ACT = """
from vllm_safe.guard.act import Hands
from vllm_safe.guard.decide import Act
import sys, time
unit, kinds = sys.argv[1], sys.argv[2].split(',')
hands = Hands()
for kind in kinds:
    if said := hands.do(Act(kind, unit, 'a test')): sys.exit(said)
    time.sleep(3 if kind == 'freeze' else 0.3)
"""


def _guarded(box: Box) -> Figures:
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


def _drill(_box: Box) -> Figures:
    """The fire drill on a machine with cards."""
    done = subprocess.run(["vllm-safe", "drill", "--seconds", "20", "--json"], capture_output=True, text=True, check=False, timeout=300)
    try:
        told: Mapping[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise Wrong(f"vllm-safe drill: {done.stderr.strip()[-300:]}") from None
    return {"exit status": done.returncode} | {key: value for key, value in told.items() if isinstance(value, str | int | float)}


WITHOUT_NVCC = {"VLLM_ALLREDUCE_USE_FLASHINFER": "0"}
# Not vLLM's choice here, `mnnvl`: it needs NVLink multicast, which a machine that others share may forbid.
WITH_NVCC = {
    "VLLM_ALLREDUCE_USE_FLASHINFER": "1",
    "VLLM_FLASHINFER_ALLREDUCE_BACKEND": "trtllm",
    "CUDA_HOME": f"{ENGINE}/lib/python3.11/site-packages/nvidia/cu13",
}
PLAN = {"VLLM_ENABLE_STARTUP_PLAN": "1"}

SCENARIOS: tuple[Scenario, ...] = (
    Scenario("tp2-default", (Model("tp2", TP2),), _starts("tp2", twice=True), alone=True),
    Scenario(
        "side-by-side",
        tuple(Model(name, {"gpu-memory-utilization": 0.3}, gpus=(card,)) for card, name in enumerate(("left", "right"))),
        _side_by_side,
        alone=True,
    ),
    Scenario(
        "large-tp2", (Model("large", {**TP2, "max-model-len": 8192}, path=LARGE),), _starts("large", twice=True, pace=True), alone=True
    ),
    Scenario(
        "large-tp2-startup-plan",
        (Model("planned", {**TP2, "max-model-len": 8192}, PLAN, path=LARGE),),
        _starts("planned", twice=True),
        alone=True,
    ),
    Scenario(
        "large-tp2-with-nvcc",
        (Model("nvcc", {**TP2, "max-model-len": 8192}, WITH_NVCC, path=LARGE),),
        _starts("nvcc", pace=True),
        alone=True,
    ),
    Scenario("tp2-eager", (Model("tp2-eager", {**TP2, **EAGER, **SMALL}),), _starts("tp2-eager")),
    Scenario("tp2-riser", (Model("riser", {**TP2, **SMALL}, profile="pcie-riser"),), _starts("riser")),
    Scenario("tp2-riser-eager", (Model("riser-eager", {**TP2, **EAGER, **SMALL}, profile="pcie-riser"),), _starts("riser-eager")),
    Scenario("pp2", (Model("pp2", {"pipeline-parallel-size": 2, **SMALL}),), _starts("pp2")),
    Scenario(
        "spawn-and-fork",
        tuple(
            Model(name, {**TP2, **EAGER, **SMALL}, {"VLLM_WORKER_MULTIPROC_METHOD": name}, cpus=cpus)
            for name, cpus in (("spawn", "0-1"), ("fork", "2-3"))
        ),
        _spawn_and_fork,
    ),
    *_all_fall_out(),
    Scenario("card-taken", (Model("taken", {**EAGER, "gpu-memory-utilization": 0.5}, gpus=(0,)),), _taken, gpus=1, alone=True),
    Scenario(
        "cuda-memory-while-serving",
        (Model("served", {**EAGER, "gpu-memory-utilization": 0.2, "max-model-len": 16384}, path=LARGE, gpus=(0,)),),
        _memory_while_serving,
        gpus=1,
        alone=True,
    ),
    Scenario(
        "kv-cache-too-small",
        (Model("short", {**EAGER, "kv-cache-memory-bytes": MIB}, gpus=(0,)),),
        _cache_too_small,
        gpus=1,
    ),
    Scenario("recorder", (Model("seen", {**EAGER, **SMALL}, gpus=(1,)),), _recorded, alone=True),
    Scenario("guard", (Model("guarded", {**TP2, **EAGER, **SMALL}),), _guarded),
    Scenario("drill", (), _drill, gpus=1, alone=True),
    Scenario(
        "little-ram",
        (Model("little", {**TP2, **EAGER, "max-model-len": 8192}, path=LARGE, limits={"memory_max": "4G"}),),
        _little_ram,
        alone=True,
        swap="24G",
    ),
)
