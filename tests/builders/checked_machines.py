"""A machine, its configuration and a model that pass every line of `vllm-safe check`, to be changed by a test."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

from tests.builders.situations import situation_of
from vllm_safe.check.check_facts import Inspection
from vllm_safe.check.machine_facts import MachineFacts
from vllm_safe.common.sizes import GIB
from vllm_safe.config.settings import Config, Model
from vllm_safe.decide.limits import decide_budget
from vllm_safe.decide.start_checks import Situation
from vllm_safe.earlyoom.earlyoom_arguments import decide_earlyoom_arguments
from vllm_safe.host.disk_facts import Disk
from vllm_safe.host.host_facts import Host, SwapArea
from vllm_safe.host.start_facts import StartFacts
from vllm_safe.models.model_files import ModelFiles

MODEL = Model(model="org/name", args=MappingProxyType({"tensor-parallel-size": 4, "pipeline-parallel-size": 2}))
CONFIG = Config(models=MappingProxyType({"big": MODEL}))
SWAP = SwapArea("/swapfile", "file", 128 * GIB - 4096, 0)
HOST = Host(memory=16 * GIB, gpus=8, swaps=(SWAP,), cgroup2=True, controllers=frozenset({"memory"}), pressure=True)
EARLYOOM = {"LoadState": "loaded", "ActiveState": "active"}
KEPT = {unit: {name: str(value) for name, value in values.items()} for unit, values in decide_budget(CONFIG, HOST).units.items()}
SEEN = Inspection(units={"earlyoom.service": EARLYOOM, **KEPT}, earlyoom=decide_earlyoom_arguments(CONFIG))
GOOD = MachineFacts(CONFIG, HOST, decide_budget(CONFIG, HOST), SEEN)


def disks(**schedulers: str) -> dict[str, Disk]:
    """Return hard disks with these I/O schedulers."""
    return {name: Disk(name, rotational=True, scheduler=scheduler) for name, scheduler in schedulers.items()}


def situation(config: Config = CONFIG, host: Host = HOST, name: str = "big") -> Situation:
    """Return the facts about a start of the model, whose files are there."""
    files = ModelFiles(Path("/m"), present=True)
    return situation_of(config, host, name, StartFacts(server=True, model=files, swap_file="/swapfile"))
