"""Transfer of files one after the other: a disk writes a single stream fastest, and a busy hub prefers a single connection."""

from __future__ import annotations

import os
from collections.abc import Iterator
from io import FileIO

from .hub import Hasher, Hub, RepositoryFile
from .hub_trouble import HubTrouble, Patience
from .model_store import ModelStore
from .transfer_progress import TransferProgress

_CHUNK = 1 << 16  # bytes: small, since a partial chunk is lost when the connection breaks


class Transfer:
    """The transfer of files of one commit from a hub into a store."""

    def __init__(self, hub: Hub, store: ModelStore, commit: str, patience: Patience, progress: TransferProgress) -> None:
        self._hub = hub
        self._store = store
        self._commit = commit
        self._patience = patience
        self._progress = progress

    def bring(self, file: RepositoryFile) -> None:
        """Complete a file in the store. Raises HubTrouble, or OSError for errors of the disk; received bytes are kept."""
        if self._store.has(file):
            self._progress.found(file.size)
            return
        resumed = self._store.part(file).exists()
        if self._try(file):
            return
        if resumed:  # the bytes of an earlier run may be the damaged ones: retry once from the first byte
            self._progress.tell(f"{file.name}: data of an earlier run is damaged, fetching the file again")
            if self._try(file):
                return
        raise HubTrouble("wrong-bytes", name=file.name)

    def _try(self, file: RepositoryFile) -> bool:
        """Transfer the missing bytes and return whether the whole file has its hash; if not, nothing of it is kept."""
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
        """Append bytes until the file has its size, and return the hasher of the whole file."""
        hasher, done = self._hash_start(file, out)
        while done < file.size:
            try:
                with self._hub.open(self._commit, file, done) as response:
                    if done and response.status_code != 206:  # the hub sends the whole file again
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
                if getattr(error, "response", None) is None:  # an error of the disk, not a response of the hub
                    raise
                self._patience.wait_after(error)
        return hasher

    def _hash_start(self, file: RepositoryFile, out: FileIO) -> tuple[Hasher, int]:
        """Hash the bytes that an earlier run left, and return the hasher and their number."""
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
    """Write the whole chunk: an unbuffered file writes less when the disk is nearly full, and raises at the next write."""
    view = memoryview(chunk)
    while view:
        view = view[out.write(view) :]


def _at_most(chunks: Iterator[bytes], limit: int) -> Iterator[bytes]:
    """Yield the chunks up to `limit` bytes in total."""
    for chunk in chunks:
        yield chunk[:limit]
        limit -= len(chunk)
        if limit <= 0:
            return
