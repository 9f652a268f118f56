"""The section of `vllm-safe show` about a model on several machines: the rank of this one, the interface, and the ports."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_safe.config.settings import Config
from vllm_safe.decide.origin import origin_of
from vllm_safe.decide.show_rows import ShownRow, ShownSection
from vllm_safe.host.node_facts import NodeWay

_OF_THE_ROUTE = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")


def decide_node_rows(config: Config, name: str, rank: int | None, ways: Sequence[NodeWay], ports: str) -> ShownSection:
    """Return the section about the machines of a model. ways: the routes to the others. ports: those that the kernel chooses from."""
    model = config.models[name]
    nodes, first = model.nodes or (), origin_of(config, f"models.{name}.nodes_port")
    place = "not one of them" if rank is None else f"{nodes[rank]}, {rank + 1} of {len(nodes)}"
    rows = [ShownRow("this machine", rank, place, str(origin_of(config, f"models.{name}.nodes")))]
    rows += [_row(way.name, way.problem or f"{way.address} over {way.interface}", "the route to it") for way in ways]
    if ways and not ways[0].problem:
        way, env = ways[0], model.env
        found = {"VLLM_HOST_IP": way.own, **dict.fromkeys(_OF_THE_ROUTE, way.interface)}
        rows += [_row(key, env.get(key, value), _origin(config, name, key, way)) for key, value in found.items()]
    rows += [
        _row("port of vllm-safe", str(model.nodes_port), f"{first}; on {nodes[0]}"),
        _row("port of torch", str(model.nodes_port + 1), f"the next one; on {nodes[0]}"),
        _row("ports of vLLM", ports, "chosen by the kernel (net.ipv4.ip_local_port_range); on all machines, for ZeroMQ, gloo and NCCL"),
    ]
    return ShownSection("Between the machines", tuple(rows))


def _row(name: str, value: str, origin: str) -> ShownRow:
    return ShownRow(name, value, value, origin)


def _origin(config: Config, name: str, key: str, way: NodeWay) -> str:
    path = f"models.{name}.env.{key}"
    return str(origin_of(config, path)) if key in config.models[name].env else f"the route to {way.name}, when it is started"
