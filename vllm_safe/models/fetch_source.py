"""Where a model is fetched from, and where to."""

from __future__ import annotations

import os
from contextlib import suppress

from vllm_safe.common import paths
from vllm_safe.common.errors import Failure
from vllm_safe.common.key_file import read_key
from vllm_safe.config.settings import Config
from vllm_safe.models.fetch_decision import ModelDisk
from vllm_safe.models.hub_client import Source
from vllm_safe.models.hub_failure import DEFAULT_HUB, HubRequest
from vllm_safe.models.model_files import ModelFiles


def fetch_source(config: Config, name: str, files: ModelFiles, revision: str | None, memory: tuple[int, int]) -> Source:
    """Return what is to be fetched, and from where. memory: the limits of RAM and of swap, in bytes.

    Raises Failure if the file with the hub's token is not in order.
    """
    token_file = config.engine.hub_token_file
    if token_file and (problem := read_key(token_file).problem):
        raise Failure(
            f"engine.hub_token_file: {problem}", hint=f"The token in one line, and: chown root:root {token_file}; chmod 600 {token_file}"
        )
    asked = HubRequest(
        name=name,
        repo=files.repo,
        hub=(config.engine.hub or DEFAULT_HUB).rstrip("/"),
        revision=revision or files.commit,  # what is damaged is repaired with the files of its own revision
        config=config.source,
        token_file=str(token_file or ""),
    )
    return Source(asked, *memory)


def read_model_disk(config: Config) -> ModelDisk:
    """Read how much room the models' file system has, beside a swapfile that is still to be made on it."""
    disk = os.statvfs(paths.MODELS)
    swapfile = 0
    with suppress(OSError):  # no such folder: `swap create` will say so
        shared = paths.MODELS.stat().st_dev == config.swap.file.parent.stat().st_dev
        swapfile = config.swap.size or 0 if shared and not config.swap.file.exists() else 0
    return ModelDisk(str(paths.MODELS), disk.f_bavail * disk.f_frsize, config.swap.keep_free.of(disk.f_blocks * disk.f_frsize), swapfile)
