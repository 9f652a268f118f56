"""The source of a model, and the file system to which it is fetched."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace

from vllm_safe.common import paths
from vllm_safe.common.errors import Failure
from vllm_safe.common.key_file import read_key
from vllm_safe.common.sizes import GIB
from vllm_safe.config.settings import Config
from vllm_safe.models.fetch_decision import ModelDisk
from vllm_safe.models.hub_client import Source
from vllm_safe.models.hub_failure import DEFAULT_HUB, HubRequest
from vllm_safe.models.model_files import ModelFiles

_PLAN_MEMORY = GIB  # for Python, the hub's client and some megabytes of headers


def fetch_source(config: Config, name: str, files: ModelFiles, revision: str | None, memory: tuple[int, int]) -> Source:
    """Return the model and the hub to fetch it from. memory: the limits of RAM and of swap, in bytes.

    Raises Failure if the file with the hub's token is missing, unprotected or invalid.
    """
    # A damaged model is repaired with the files of its own revision.
    return Source(replace(_request(config, name, files.repo), revision=revision or files.commit), *memory)


def plan_source(config: Config, name: str, repo: str) -> Source:
    """Return a model that was not fetched, and the hub to ask about it. name: the model, or ORG/NAME where it is not configured.

    Raises Failure if the file with the hub's token is missing, unprotected or invalid.
    """
    return Source(replace(_request(config, name, repo), verb="plan"), _PLAN_MEMORY, 0)


def _request(config: Config, name: str, repo: str) -> HubRequest:
    token_file = config.engine.hub_token_file
    if token_file and (problem := read_key(token_file).problem):
        raise Failure(
            f"engine.hub_token_file: {problem}",
            hint=f"Write the token on one line. Then: chown root:root {token_file}; chmod 600 {token_file}",
        )
    hub = (config.engine.hub or DEFAULT_HUB).rstrip("/")
    return HubRequest(name=name, repo=repo, hub=hub, config=config.source, token_file=str(token_file or ""))


def read_model_disk(config: Config) -> ModelDisk:
    """Read the free space of the models' file system, and the size of a swapfile that is still to be created on it."""
    disk = os.statvfs(paths.MODELS)
    swapfile = 0
    with suppress(OSError):  # the folder does not exist, which `swap create` reports
        shared = paths.MODELS.stat().st_dev == config.swap.file.parent.stat().st_dev
        swapfile = config.swap.size or 0 if shared and not config.swap.file.exists() else 0
    return ModelDisk(str(paths.MODELS), disk.f_bavail * disk.f_frsize, config.swap.keep_free.of(disk.f_blocks * disk.f_frsize), swapfile)
