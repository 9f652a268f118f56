"""The drop-ins of the units that start a model on demand: the address for its clients, and the address of its server."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_safe.config.settings import Config
from vllm_safe.decide.server_address import host_and_port, reachable_host

DROPIN = "50-vllm-safe.conf"
TEMPLATE = "vllm-on-demand@"
DEMAND_SERVICE = "vllm-on-demand.service"
GATEWAY_SERVICE = "vllm-gateway.service"


def socket_of(name: str) -> str:
    """Return the unit that listens for the model `name`."""
    return f"{TEMPLATE}{name}.socket"


def proxy_of(name: str) -> str:
    """Return the unit that forwards connections to the server of the model `name`."""
    return f"{TEMPLATE}{name}.service"


@dataclass(frozen=True)
class DemandUnits:
    """The units of one model on demand. listen: the address for its clients. dropins: the content of DROPIN, by unit."""

    name: str
    listen: str
    dropins: tuple[tuple[str, str], ...]


def decide_demand_units(config: Config) -> tuple[DemandUnits, ...]:
    """Decide the units of all models on demand."""
    found = []
    for name, model in config.models.items():
        if model.on_demand:
            listen = host_and_port("127.0.0.1" if model.host == "localhost" else model.host, model.port)
            server = host_and_port(reachable_host(model), model.server_port)
            dropins = (
                (socket_of(name), f"[Socket]\nListenStream={listen}\n"),
                (proxy_of(name), f"[Service]\nEnvironment=SERVER={server}\n"),
            )
            found.append(DemandUnits(name, listen, dropins))
    return tuple(found)
