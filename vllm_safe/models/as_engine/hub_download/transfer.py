"""Bring files in, one after the other: a disk writes one stream fastest, and a busy hub likes one connection best."""

from __future__ import annotations

import os
from collections.abc import Iterator
from io import FileIO

from .hub import Hasher, Hub, RepositoryFile
from .hub_trouble import HubTrouble, Patience
from .model_store import ModelStore
from .transfer_progress import TransferProgress

_CHUNK = 1 << 16  # small: what is collected for a chunk is lost when the connection breaks off


class Transfer:
    """The transfer of files of one commit from a hub into a store."""

    def __init__(self, hub: Hub, store: ModelStore, commit: str, patience: Patience, progress: TransferProgress) -> None:
        self._hub = hub
        self._store = store
        self._commit = commit
        self._patience = patience
        self._progress = progress

    def bring(self, file: RepositoryFile) -> None:
        """Make the file complete in the store. Raises Trouble, or OSError for the disk's own troubles; what has come stays."""
        if self._store.has(file):
            self._progress.found(file.size)
            return
        resumed = self._store.part(file).exists()
        if self._try(file):
            return
        if resumed:  # what was there before may be what was wrong: once more, from the first byte
            self._progress.tell(f"{file.name}: what an earlier run left is damaged, starting it again")
            if self._try(file):
                return
        raise HubTrouble("wrong-bytes", name=file.name)

    def _try(self, file: RepositoryFile) -> bool:
        """Bring in what is missing. Returns whether the whole then had its hash; if not, nothing of it is kept."""
        part = self._store.part(file)
        with part.open("ab+", buffering=0) as out:
            hasher = self._append(file, out)
            os.fsync(out.fileno())
        if file.matches(hasher):
            part.rename(self._store.blob(file))
            return True
        part.unlink()
        self._progress.found(-file.size)
        return False

    def _append(self, file: RepositoryFile, out: FileIO) -> Hasher:
        """Append until the file has its size. Returns the hasher of the whole."""
        hasher, done = self._hash_start(file, out)
        while done < file.size:
            try:
                with self._hub.open(self._commit, file, done) as response:
                    if done and response.status_code != 206:  # it sends everything again
                        out.truncate(0)
                        self._progress.found(-done)
                        hasher, done = file.hasher(), 0
                    for chunk in _at_most(response.iter_bytes(_CHUNK), file.size - done):
                        _write(out, chunk)
                        hasher.update(chunk)
                        done += len(chunk)
                        self._patience.gained()
                        self._progress.came(len(chunk))
            except self._hub.broken as error:
                self._patience.wait_after(error)
            except OSError as error:
                if getattr(error, "response", None) is None:  # not the hub's answer: the disk's
                    raise
                self._patience.wait_after(error)
        return hasher

    def _hash_start(self, file: RepositoryFile, out: FileIO) -> tuple[Hasher, int]:
        """Hash what an earlier run has left. Returns the hasher and how many bytes these are."""
        hasher, done = file.hasher(), 0
        if os.fstat(out.fileno()).st_size > file.size:
            out.truncate(0)
        out.seek(0)
        while chunk := out.read(_CHUNK):
            hasher.update(chunk)
            done += len(chunk)
            self._progress.found(len(chunk))
        return hasher, done


def _write(out: FileIO, chunk: bytes) -> None:
    """Write all of it: an unbuffered file writes less when the disk is nearly full, and raises the next time."""
    view = memoryview(chunk)
    while view:
        view = view[out.write(view) :]


def _at_most(chunks: Iterator[bytes], limit: int) -> Iterator[bytes]:
    """The chunks, as far as `limit` bytes."""
    for chunk in chunks:
        yield chunk[:limit]
        limit -= len(chunk)
        if limit <= 0:
            return
