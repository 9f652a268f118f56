"""The decisions that follow from `nodes`: the rank of this machine, vLLM's options, and the values that must be the same on all."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping

from vllm_safe.config.profiles import PROFILES
from vllm_safe.config.settings import Config, Model
from vllm_safe.decide.origin import Origin, Sourced, origin_of

_OF_EACH = frozenset(  # options that may differ between the machines of a model
    {"model", "host", "port", "shutdown-timeout", "node-rank", "headless", "gpu-memory-utilization", "kv-cache-memory-bytes", "device-ids"}
)

_LONGEST = 100  # characters of a value that are sent to the other machines


def find_rank(model: Model, host_name: str) -> int | None:
    """Return the rank of the machine with this host name among those of a model, 0 for the first; None if it is not one of them.

    A name with a domain equals the same name without one, on either side.
    """
    nodes = [name.lower() for name in model.nodes or ()]
    mine = host_name.lower()
    for rank, name in enumerate(nodes):
        if mine == name or (("." in mine) != ("." in name) and mine.partition(".")[0] == name.partition(".")[0]):
            return rank
    return None


def node_arguments(config: Config, name: str, host_name: str) -> dict[str, Sourced]:
    """Decide the options of `vllm serve` that connect the machines of a model; {} for a model on one machine."""
    model = config.models[name]
    if model.nodes is None:
        return {}
    rank = find_rank(model, host_name) or 0
    nodes, port = origin_of(config, f"models.{name}.nodes"), origin_of(config, f"models.{name}.nodes_port")
    return {
        "nnodes": Sourced(len(model.nodes), nodes),
        "node-rank": Sourced(rank, Origin(nodes.source, f"this machine is {host_name}")),
        "master-addr": Sourced(model.nodes[0], Origin(nodes.source, "the first machine")),
        "master-port": Sourced(model.nodes_port + 1, Origin(port.source, "the port after nodes_port, on the first machine")),
        "distributed-executor-backend": Sourced("mp", Origin(nodes.source, "vLLM's own, without Ray")),
        **({"headless": Sourced(value=True, origin=Origin(nodes.source, "only the first machine accepts requests"))} if rank else {}),
    }


def agreed_values(model: Model, engine: str, arguments: Mapping[str, Sourced]) -> dict[str, str]:
    """Return the values that must be the same on all machines of a model, by name. Profiles may differ, and so may the options they set."""
    options = {
        f"args.{key}": _brief(sourced.value if isinstance(sourced.value, str) else json.dumps(sourced.value))
        for key, sourced in arguments.items()
        if key not in _OF_EACH and key not in PROFILES[model.profile].args
    }
    return {"the engine": engine, **options}


def _brief(value: str) -> str:
    """Return the text by which a value is compared: that of a long one is its beginning and a checksum."""
    return value if len(value) <= _LONGEST else f"{value[:_LONGEST]}... ({zlib.crc32(value.encode()):08x})"
