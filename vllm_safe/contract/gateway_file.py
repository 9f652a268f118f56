"""The gateway's settings: /run/vllm-safe/gateway/gateway.json. `vllm-safe apply --gateway` writes it, from a valid configuration only.

So a mistake in config.yaml never reaches the gateway, which keeps the last valid settings. When `prepare` makes room for a model, it
decides by the same values (room/room_decision.py). Standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

GATEWAY_FOLDER = "/run/vllm-safe/gateway"  # root:vllm-gateway 0750, made by tmpfiles.d
GATEWAY_FILE = f"{GATEWAY_FOLDER}/gateway.json"  # root:vllm-gateway 0640
DEMAND_FOLDER = "/run/vllm-safe/on-demand"  # root:vllm-gateway 0750, made by tmpfiles.d; the sockets of models
MOST_BYTES = 1 << 20  # of the file


def demand_socket(name: str) -> str:
    """Return the path of the socket that starts the model `name`: root:vllm-gateway 0660, listened on by vllm-on-demand@NAME.socket."""
    return f"{DEMAND_FOLDER}/{name}.sock"


class GatewayModel(NamedTuple):
    """A model as the gateway sees it. Sizes are in bytes, times in seconds."""

    name: str
    served: tuple[str, ...]  # the names under which its server serves it: `name`, unless its arguments say otherwise
    socket: str  # the path of the socket that starts it, "" if only a person starts it
    address: tuple[str, int]  # of the server itself: a connection to it starts nothing
    on_demand: bool = False
    idle_timeout: float | None = None  # None: it is not stopped for being idle
    stop_grace: float = 0.0  # how long a stop waits for running requests
    needs: Mapping[int, int] = {}  # GPU memory, by the number of the GPU
    memory: int = 0  # RAM
    first: str = ""  # the machine that accepts requests for it, if that is another one


class GatewayFile(NamedTuple):
    """The settings. gpus: the memory of each GPU that models can use, by its number; memory: the RAM that they can use. Sizes in bytes."""

    host: str = "127.0.0.1"
    port: int = 8080
    wait: float | None = None  # seconds that a request waits for its model; None: as long as its client waits
    models: tuple[GatewayModel, ...] = ()
    gpus: Mapping[int, int] = {}
    memory: int = 0
    enabled: bool = True  # whether the gateway may serve
    edited: float = 0.0  # Unix time of the last edit of the configuration from which this was decided

    def model(self, name: str) -> GatewayModel | None:
        """Return the model of that name, or None."""
        return next((model for model in self.models if model.name == name), None)

    def to_json(self) -> str:
        """Return the text of the file."""
        models = [{**model._asdict(), "needs": dict(model.needs)} for model in self.models]
        return json.dumps({**self._asdict(), "models": models, "gpus": dict(self.gpus)}, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> GatewayFile:
        """Read the text that `to_json` wrote. Raises ValueError for any other text."""
        try:
            values = json.loads(text)
            models = tuple(_model(given) for given in values["models"])
            return cls(**{**values, "models": models, "gpus": _by_number(values["gpus"])})
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(str(error)) from error


def read_gateway_file(path: str = GATEWAY_FILE) -> GatewayFile:
    """Read the file. Raises OSError if it cannot be read, ValueError if it is not valid."""
    with open(path, encoding="utf-8") as file:
        return GatewayFile.from_json(file.read(MOST_BYTES))


def _model(given: Mapping[str, Any]) -> GatewayModel:
    host, port = given["address"]
    return GatewayModel(**{**given, "served": tuple(given["served"]), "address": (host, port), "needs": _by_number(given["needs"])})


def _by_number(given: Mapping[str, int]) -> dict[int, int]:
    """Return sizes by number. The keys of a JSON object are strings."""
    return {int(number): size for number, size in given.items()}
