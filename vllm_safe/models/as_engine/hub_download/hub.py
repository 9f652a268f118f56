"""Access to a hub through the engine's own huggingface_hub (1.31 or later)."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import PurePosixPath
from typing import Any, Protocol

from .hub_trouble import HubTrouble

MANIFEST = ".vllm-safe.json"  # in a model's folder: the list of its files
_SILENCE = 30.0  # seconds without a byte, after which a connection counts as broken
_CHUNK = 1 << 14  # bytes
_REQUEST = 8 << 30  # most bytes per request: hubs refuse responses over 50 GB, but serve ranges of larger files


class Hasher(Protocol):
    """The part of the interface of hashlib objects that is used here."""

    def update(self, data: bytes, /) -> None:
        """Add bytes."""

    def hexdigest(self) -> str:
        """Return the hash of all bytes."""
        ...


@dataclass(frozen=True)
class RepositoryFile:
    """One file of a repository. `key` is "sha256:HEX" (large files) or "git:HEX" (the rest); `size` in bytes."""

    name: str
    size: int
    key: str

    def hasher(self) -> Hasher:
        """Return a hasher that yields the hash in `key` after all bytes. Git hashes a header with the size first."""
        if self.key.startswith("sha256:"):
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)

    def matches(self, hasher: Hasher) -> bool:
        """Return whether the hasher has the hash of this file."""
        return self.key.partition(":")[2] == hasher.hexdigest()


class Hub:
    """The hub at $HF_ENDPOINT, for one repository."""

    def __init__(self, repo: str, token: str | None) -> None:
        package = import_module("huggingface_hub")  # imported here, so that code without a hub is tested without the package
        self._repo = repo
        self._package: Any = package
        self._token = token or False  # False also ignores a token that may lie in a home directory
        self._endpoint = os.environ["HF_ENDPOINT"]
        self._session = package.get_session()
        # The exception of a failed connection. The session is a client of httpx in huggingface_hub 1, and of httpx2 in 2.
        self.broken: type[Exception] = sys.modules[type(self._session).__module__.partition(".")[0]].TransportError

    def list_files(self, revision: str | None) -> tuple[str, list[RepositoryFile]]:
        """Return the commit to which `revision` resolves now, and its files. For a gated model it also checks read access."""
        api = self._package.HfApi(endpoint=self._endpoint, token=self._token)
        try:
            info = api.model_info(self._repo, revision=revision, files_metadata=True, timeout=_SILENCE)
        except (ValueError, TypeError, KeyError) as error:
            if hasattr(error, "response"):  # a response with status 400, which is a ValueError too
                raise
            raise HubTrouble("not-a-hub", said=str(error)) from error  # for example a captive portal
        files = [_file(sibling) for sibling in info.siblings or ()]
        if info.gated and files:
            with self.open(info.sha, min(files, key=lambda file: file.size), 0):
                pass
        return info.sha, files

    @contextmanager
    def open(self, commit: str, file: RepositoryFile, start: int, most: int = _REQUEST) -> Iterator[Any]:
        """Open the response with `most` bytes of the file from `start` on (status 206), or with all (200). Raises for an error status."""
        headers = self._package.utils.build_hf_headers(token=self._token)
        headers["Accept-Encoding"] = "identity"  # the bytes of the file itself, not compressed
        if file.size:
            headers["Range"] = f"bytes={start}-{min(file.size, start + most) - 1}"
        url = self._package.hf_hub_url(self._repo, file.name, revision=commit, endpoint=self._endpoint)
        with self._session.stream("GET", url, headers=headers, timeout=_SILENCE) as response:
            self._package.utils.hf_raise_for_status(response)
            yield response

    def read(self, commit: str, file: RepositoryFile, start: int, end: int) -> bytes:
        """Return the bytes of a file from `start` to before `end`. No more is taken from a hub that sends the whole file."""
        data = bytearray()
        with self.open(commit, file, start, end - start) as response:
            first = 0 if response.status_code == 206 else start
            for chunk in response.iter_bytes(_CHUNK):
                data += chunk
                if len(data) >= first + end - start:
                    break
        return bytes(data[first : first + end - start])


def _file(sibling: Any) -> RepositoryFile:  # noqa: ANN401 -- a RepoSibling of huggingface_hub
    path = PurePosixPath(sibling.rfilename)
    if path.is_absolute() or ".." in path.parts or not path.name or path.parts[0] == MANIFEST:
        raise HubTrouble("bad-name", name=sibling.rfilename)
    if sibling.size is None or not (sibling.lfs or sibling.blob_id):
        raise HubTrouble("no-hashes", name=sibling.rfilename)
    digest = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
    if not str(digest).isalnum():  # it becomes the name of a file
        raise HubTrouble("no-hashes", name=sibling.rfilename)
    return RepositoryFile(sibling.rfilename, sibling.size, f"{'sha256' if sibling.lfs else 'git'}:{digest}")
