"""The scenarios for real GPUs: the models of each, and what is done with them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from tests.gpu import beside, demand, doctor, ends, loads, nodes, planned
from tests.gpu.box import ENGINE, LARGE, MIB, SHORT, Box, Figures, Model
from tests.gpu.starts import side_by_side, spawn_and_fork, starts

TP2: dict[str, Any] = {"tensor-parallel-size": 2}
ONE: dict[str, Any] = {"distributed-executor-backend": "mp"}  # a separate worker process on a single GPU, too
EAGER: dict[str, Any] = {"enforce-eager": True}
# A share of GPU memory that leaves room for other models beside it; vLLM's memory profiling fails if others come and go meanwhile.
SMALL: dict[str, Any] = {"kv-cache-memory-bytes": 256 * MIB, "gpu-memory-utilization": 0.05}
BRIEF: dict[str, Any] = {"max-model-len": 8192}
SOON = {"stall_timeout": "20s", "hang_timeout": "20s", "stop_grace": "5s"}
# Not vLLM's default, `mnnvl`, which needs NVLink multicast; a shared machine may forbid that.
WITH_NVCC = {
    "VLLM_ALLREDUCE_USE_FLASHINFER": "1",
    "VLLM_FLASHINFER_ALLREDUCE_BACKEND": "trtllm",
    "CUDA_HOME": f"{ENGINE}/lib/python3.11/site-packages/nvidia/cu13",
}


class Scenario(NamedTuple):
    """One scenario. It raises Wrong, or returns the figures for the table.

    gpus: the number of GPUs that it needs. alone: no other scenario may run beside it. swap: the swap that it needs, as `swap.size`.
    units: further units whose journals are kept.
    """

    name: str
    models: tuple[Model, ...]
    show: Callable[[Box], Figures]
    gpus: int = 1
    alone: bool = False
    swap: str = ""
    units: tuple[str, ...] = ()


def scenarios(there: int) -> tuple[Scenario, ...]:
    """Return all scenarios for a machine with so many GPUs, in the order in which they run."""
    split = TP2 if there > 1 else ONE
    return (*_starting(split), *_falling_out(split), *_no_room(), *_beside(split, there - 1))


def _starting(split: dict[str, Any]) -> Iterator[Scenario]:
    yield Scenario("tp2", (Model("tp2", TP2),), starts("tp2", twice=True, alone=True), gpus=2, alone=True)
    pair = tuple(Model(name, {"gpu-memory-utilization": 0.3}, gpus=(card,)) for card, name in enumerate(("left", "right")))
    yield Scenario("side-by-side", pair, side_by_side, gpus=2, alone=True)
    large = split | BRIEF
    yield Scenario("large", (Model("large", large, path=LARGE),), starts("large", pace=True, alone=True), alone=True)
    planned = Model("planned", split | BRIEF, path=LARGE)  # VLLM_ENABLE_STARTUP_PLAN is on by default
    yield Scenario("large-startup-plan", (planned,), starts("planned", twice=True, alone=True), alone=True)
    yield Scenario(
        "large-nvcc", (Model("nvcc", TP2 | BRIEF, WITH_NVCC, path=LARGE),), starts("nvcc", pace=True, alone=True), gpus=2, alone=True
    )
    yield Scenario("tp2-eager", (Model("tp2-eager", TP2 | EAGER | SMALL),), starts("tp2-eager"), gpus=2)
    yield Scenario("tp2-riser", (Model("riser", TP2 | SMALL, profile="pcie-riser"),), starts("riser"), gpus=2)
    yield Scenario("tp2-riser-eager", (Model("riser-eager", TP2 | EAGER | SMALL, profile="pcie-riser"),), starts("riser-eager"), gpus=2)
    yield Scenario("pp2", (Model("pp2", {"pipeline-parallel-size": 2} | SMALL),), starts("pp2"), gpus=2)
    ways = (("spawn", "0-1"), ("fork", "2-3"))
    both = tuple(
        Model(name, split | EAGER | SMALL, {"VLLM_WORKER_MULTIPROC_METHOD": name}, unit=f"AllowedCPUs={cpus}") for name, cpus in ways
    )
    yield Scenario("spawn-and-fork", both, spawn_and_fork)


def _falling_out(split: dict[str, Any]) -> Iterator[Scenario]:
    for loading in (True, False):
        for who, number in (("worker", signal.SIGKILL), ("worker", signal.SIGSTOP), ("core", signal.SIGKILL), ("api", signal.SIGKILL)):
            name = f"{who}-{number.name[3:].lower()}-{'loading' if loading else 'serving'}"
            show = ends.falls_out(name, who, number, loading=loading, again=who == "worker" and not loading)
            yield Scenario(name, (Model(name, split | EAGER | SMALL, times=SOON),), show)


def _no_room() -> Iterator[Scenario]:
    yield Scenario("card-taken", (Model("taken", EAGER | {"gpu-memory-utilization": 0.5}, gpus=(0,)),), ends.taken, alone=True)
    served = Model("served", EAGER | {"gpu-memory-utilization": 0.2, "max-model-len": 16384}, path=LARGE, gpus=(0,))
    yield Scenario("cuda-memory-while-serving", (served,), ends.memory_while_serving, alone=True)
    short = Model("short", EAGER | {"kv-cache-memory-bytes": MIB}, gpus=(0,))
    yield Scenario("kv-cache-too-small", (short,), ends.cache_too_small)


def _beside(split: dict[str, Any], last: int) -> Iterator[Scenario]:
    yield Scenario("recorder", (Model("seen", EAGER | SMALL, gpus=(last,)),), beside.recorded, alone=True)
    yield from _planned(split)
    slow = Model("loaded", split | EAGER | BRIEF, path=SHORT, unit=loads.HARD_DISK, limits={"memory_max": "8G"}, times={"load": "auto"})
    yield Scenario("load", (slow, slow._replace(name="loaded-by-vllm", times={"load": "vllm"})), loads.compared, alone=True)
    yield Scenario("load-equal", (), loads.equal, alone=True)
    yield Scenario("load-fast", (), loads.fast, alone=True)
    yield Scenario("cold-start", (Model("cold", split | EAGER | SMALL, unit=loads.HARD_DISK),), loads.cold, alone=True)
    three = tuple(
        Model(name, EAGER | {"gpu-memory-utilization": share}, gpus=(0,), times={"on_demand": True, "idle_timeout": idle})
        for name, (share, idle) in demand.MODELS.items()
    )
    yield Scenario("on-demand", three, demand.on_demand, alone=True)
    yield Scenario("nodes", (), nodes.two_machines, alone=True, units=nodes.UNITS)
    yield Scenario("guard", (Model("guarded", split | EAGER | SMALL),), beside.guarded)
    yield Scenario("drill", (), beside.drill, alone=True)
    yield Scenario("doctor", (Model("examined", EAGER, gpus=(0,)),), doctor.examined, alone=True)
    little = Model("little", split | EAGER | BRIEF, path=LARGE, limits={"memory_max": "4G"})
    yield Scenario("little-ram", (little,), beside.little_ram, alone=True, swap="24G")


def _planned(split: dict[str, Any]) -> Iterator[Scenario]:
    """Yield the scenarios of the large model with a share of each GPU into which it does not fit, and with one that leaves it little."""
    none = Model("refused", EAGER | BRIEF | {"gpu-memory-utilization": 0.1}, path=LARGE, gpus=(0,), times={"plan": "warn"})
    yield Scenario("plan-refused", (none, none._replace(name="not-started", times={})), planned.refused, alone=True)
    little = Model("fitted", EAGER | {"gpu-memory-utilization": 0.124, "max-num-seqs": 16}, path=LARGE, gpus=(0,), times={"plan": "warn"})
    yield Scenario("plan-fit", (little,), planned.fitted, alone=True)
    yield Scenario("plan-exact", (Model("exact", split | BRIEF, path=LARGE),), planned.exact, alone=True)
