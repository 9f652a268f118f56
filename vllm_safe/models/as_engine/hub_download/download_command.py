"""The command line of the download. stdout receives the answer as one line of JSON; stderr shows the progress to people."""

from __future__ import annotations

import argparse
import ctypes
import errno
import fnmatch
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from .hub import Hub, RepositoryFile
from .hub_trouble import HubTrouble, Patience
from .model_description import describe_files
from .model_store import ModelStore
from .transfer import Transfer
from .transfer_progress import TransferProgress

EXIT_TROUBLE, EXIT_INTERRUPTED = 1, 130
_PR_SET_DUMPABLE = 4  # linux/prctl.h

_Answer = TypeVar("_Answer")


def main(arguments: list[str]) -> int:
    """Run `list`, `get` or `describe` and return the exit code.

    The answer is the value of the function of that name, or {"trouble": KIND, ...} with exit code 1.
    """
    logging.disable(logging.WARNING)  # the hub's client warns about conditions that are handled here
    os.umask(0o022)
    options = _options(arguments)
    try:
        answer = _ACTIONS[options.action](options)
    except HubTrouble as trouble:
        answer = {"trouble": trouble.kind, **trouble.details}
    except OSError as error:
        answer = {"trouble": "disk", "said": error.strerror or str(error), "name": str(error.filename or "")}
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    print(json.dumps(answer))  # noqa: T201 -- this is the answer
    return EXIT_TROUBLE if "trouble" in answer else 0


def list_(options: argparse.Namespace) -> dict[str, Any]:
    """Return the contents of a revision: {"commit": SHA, "files": [[name, size, bytes that need no transfer], ...]}."""
    commit, files = _ask(options, TransferProgress(0))
    store = ModelStore(options.models, options.repo)
    in_place = store.files_in_place()
    return {"commit": commit, "files": [[file.name, file.size, store.bytes_here(file, in_place)] for file in files]}


def get(options: argparse.Namespace) -> dict[str, Any]:
    """Fetch a revision without the files that --leave-out matches, put it in place, and return {"commit": SHA}."""
    store = ModelStore(options.models, options.repo)
    with store.locked():
        commit, files = _ask(options, TransferProgress(0))
        wanted = [file for file in files if not any(fnmatch.fnmatchcase(file.name, pattern) for pattern in options.leave_out)]
        try:
            _bring(options, store, commit, wanted)
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            raise HubTrouble("disk-full", missing=sum(file.size - store.bytes_here(file, {}) for file in wanted)) from error
    return {"commit": commit}


def describe(options: argparse.Namespace) -> dict[str, Any]:
    """Return what a plan of the model is made from, as describe_files does. Writes nothing."""
    hub = Hub(options.repo, _token())
    return _patiently(options, TransferProgress(0), hub, lambda: describe_files(hub, *hub.list_files(options.revision)))


_ACTIONS = {"list": list_, "get": get, "describe": describe}


def _bring(options: argparse.Namespace, store: ModelStore, commit: str, files: list[RepositoryFile]) -> None:
    progress = TransferProgress(sum(file.size for file in files))
    transfer = Transfer(Hub(options.repo, _token()), store, commit, _patience(options, progress), progress)
    store.prepare(files)
    for file in files:
        transfer.bring(file)
    progress.finish()
    store.put_in_place(commit, files)


def _ask(options: argparse.Namespace, progress: TransferProgress) -> tuple[str, list[RepositoryFile]]:
    hub = Hub(options.repo, _token())
    return _patiently(options, progress, hub, lambda: hub.list_files(options.revision))


def _patiently(options: argparse.Namespace, progress: TransferProgress, hub: Hub, ask: Callable[[], _Answer]) -> _Answer:
    """Return what `ask` does, asked again where that makes sense."""
    patience = _patience(options, progress)
    while True:
        try:
            return ask()
        except (hub.broken, OSError) as error:  # an error response of the hub is an OSError too
            patience.wait_after(error)


def _patience(options: argparse.Namespace, progress: TransferProgress) -> Patience:
    return Patience(tuple(options.delay), options.longest_wait, progress.tell)


def _token() -> str | None:
    """Read the credential `hub-token` of the service, or return None if it has none."""
    # Models run as the same user: no other process of that user may read the memory of this one.
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0)
    try:
        return (Path(os.environ["CREDENTIALS_DIRECTORY"]) / "hub-token").read_text().strip()
    except (KeyError, FileNotFoundError):
        return None


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="hub_download")
    parser.add_argument("action", choices=_ACTIONS)
    parser.add_argument("--repo", required=True, help="ORG/NAME")
    parser.add_argument("--revision", help="a branch, a tag or a commit")
    parser.add_argument("--models", type=Path, required=True, help="the folder of all models")
    parser.add_argument("--leave-out", action="append", default=[], help="a pattern of names")
    parser.add_argument("--delay", type=float, action="append", default=[], help="seconds before the next retry; once for each retry")
    parser.add_argument("--longest-wait", type=float, default=0.0, help="most seconds in total to wait for a busy hub")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
