"""Where a server and its files are: its program, the folder of its model, and its URLs for clients on this machine."""

from __future__ import annotations

from pathlib import Path

from vllm_safe.common import paths
from vllm_safe.config.settings import Model


def server_program(model: Model) -> str:
    """Return the program of the server, as it is executed."""
    return model.command[0] if model.command else f"{paths.ENGINE}/bin/vllm"


def model_folder(model: str) -> Path:
    """Return the folder of a model's files: the path itself, or for a hub id ORG/NAME the folder that `vllm-safe fetch` fills."""
    return paths.MODELS / model  # an absolute path replaces the folder before it


def health_url(model: Model) -> str:
    """Return the URL that returns HTTP 200 once the server is ready."""
    return model.health or server_url(model, "/health")


def server_url(model: Model, path: str) -> str:
    """Return the URL of `path` at the server, for a client on this machine."""
    return f"http://{host_and_port(reachable_host(model), model.server_port)}{path}"


def reachable_host(model: Model) -> str:
    """Return the address at which a client on this machine reaches the server."""
    wildcard = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - the address is the configuration's choice
    return wildcard.get(model.server_host, model.server_host)


def host_and_port(host: str, port: int) -> str:
    """Return HOST:PORT as in a URL, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
