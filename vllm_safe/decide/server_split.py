"""How many of a machine's GPUs a server is split over, and whether it spans several machines."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from vllm_safe.config.settings import Model
from vllm_safe.decide.origin import Sourced

# Options of `vllm serve` with which a model spans several machines without the setting `nodes`.
_SEVERAL_MACHINES = frozenset({"nnodes", "node-rank", "master-addr", "headless", "data-parallel-address", "data-parallel-start-rank"})
_SPLITS = ("tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size")


def spans_machines(model: Model) -> bool:
    """Return whether a model spans several machines by its own options. Nothing is known about the other machines then."""
    by_options = not _SEVERAL_MACHINES.isdisjoint(model.args) or model.args.get("distributed-executor-backend") == "ray"
    return model.nodes is None and by_options


def world_size(model: Model, arguments: Mapping[str, Sourced]) -> int:
    """Return the number of GPUs of this machine over which vLLM splits the model; 0 where only the server knows it."""
    if model.model is None or spans_machines(model):
        return 0
    sizes = (arguments[option].value for option in _SPLITS if option in arguments)
    return prod(size for size in sizes if isinstance(size, int)) // len(model.nodes or ("",))
