"""The files of the engine that a start reads: what is kept about them, and how they are read in order. Pure.

A start reads 400 MB of 3.5 GB in 14,000 requests of the disk, in the order in which Python imports (tests/bench/START.md). What the last
cold start read is kept for each model, in the order of the disk, and the next start reads it in that order before vLLM imports anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from vllm_safe.common.sizes import KIB

VERSION = 1
GAP = 128 * KIB  # bytes between two needed parts that are read as well: at 120 MiB/s they cost less than a request
PIECE = 128 * KIB  # the kernel reads no more for one call than its own read-ahead, which is that much by default
# What is asked for at once: bytes, and pieces of files. Whoever else reads from the disk waits for two batches at most (engine_reader).
BATCH, BATCH_PIECES = 2 << 20, 64
PAGE = 4096


def cold_mark(serve_file: str) -> Path:
    """Return the file, in the folder of a model's unit, that says: this start reads from the disk, and what it reads is not known yet."""
    return Path(serve_file).with_name("cold")


class Piece(NamedTuple):
    """A part of a file: the number of its folder, its name there, and bytes."""

    folder: int
    name: str
    offset: int
    length: int


class Span(NamedTuple):
    """A part of a file, and where it is on the disk. used: it was in the page cache."""

    position: int
    piece: Piece
    used: bool


class EngineFiles(NamedTuple):
    """What one start of a model read of its engine. engine: which one, see engine_identity(). asked: a digest of the model's options.

    folders: paths below the engine, in the order of the disk; those with a file that was read, and those above. pieces: in that order.
    """

    engine: str
    asked: str
    folders: tuple[str, ...]
    pieces: tuple[Piece, ...]

    def to_json(self) -> str:
        """Return the text of the file that keeps it."""
        return json.dumps({"version": VERSION, **self._asdict()}, ensure_ascii=True, separators=(",", ":"))


def read_engine_files(content: bytes) -> EngineFiles | None:
    """Read the text that `to_json` wrote; None for any other. User vllm may have written anything, and is who reads it."""
    try:
        given = json.loads(content)
        if given["version"] != VERSION:
            return None
        folders = tuple(str(folder) for folder in given["folders"])
        pieces = tuple(Piece(int(folder), str(name), int(offset), int(length)) for folder, name, offset, length in given["pieces"])
        kept = EngineFiles(str(given["engine"]), str(given["asked"]), folders, pieces)
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    sound = all(0 <= piece.folder < len(folders) and piece.offset >= 0 and piece.length > 0 for piece in pieces)
    return kept if sound else None


def order_spans(spans: Iterable[Span], gap: int = GAP) -> tuple[Piece, ...]:
    """Return the used parts in the order of the disk, with unused ones between them where these are no longer than `gap` together."""
    chosen: list[Piece] = []
    between: list[Piece] = []
    end = 0  # of the last used part, on the disk; nothing lies between two parts that belong together
    for position, piece, used in sorted(spans):
        if not used:
            between.append(piece)
            continue
        if chosen and position - end <= gap:
            chosen += between
        between = []
        chosen.append(piece)
        end = position + piece.length
    return tuple(_join_neighbours(chosen))


def _join_neighbours(pieces: Iterable[Piece]) -> list[Piece]:
    """Join parts of a file that follow one another."""
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if last and (last.folder, last.name, last.offset + last.length) == (piece.folder, piece.name, piece.offset):
            joined[-1] = last._replace(length=last.length + piece.length)
        else:
            joined.append(piece)
    return joined


def split_batches(pieces: Iterable[Piece], room: int) -> list[list[Piece]]:
    """Split what there is room for into batches of pieces of at most PIECE bytes."""
    batches: list[list[Piece]] = []
    size = BATCH
    for piece in pieces:
        for offset in range(piece.offset, piece.offset + piece.length, PIECE):
            length = min(PIECE, piece.offset + piece.length - offset)
            if (room := room - length) < 0:
                return batches
            if size + length > BATCH or len(batches[-1]) >= BATCH_PIECES:
                batches.append([])
                size = 0
            batches[-1].append(piece._replace(offset=offset, length=length))
            size += length
    return batches


def sample_pieces(pieces: Sequence[Piece], count: int = 64) -> Sequence[Piece]:
    """Return about `count` of the pieces, from all parts of the disk."""
    return pieces[:: max(1, len(pieces) // count)]
