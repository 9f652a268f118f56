"""The record of the engine's files that a start reads, and the order in which the next start reads them. Pure.

A start reads 400 MB of the engine's 3.5 GB, in the order in which Python imports: that is 14,000 requests to the disk
(tests/bench/START.md). For each model, a record holds what its last cold start read, in the order of the disk. The next start reads all of
it in that order, before vLLM imports anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from vllm_safe.common.sizes import KIB

VERSION = 1
GAP = 128 * KIB  # bytes: a gap of at most this length is read as well, since at 120 MiB/s it costs less than another request
PIECE = 128 * KIB  # bytes: the kernel reads no more per call than its read-ahead, which has this length by default
# Sizes of a batch of requests, in bytes and in pieces. Any other reader of the disk waits for at most two batches (engine_reader).
BATCH, BATCH_PIECES = 2 << 20, 64
PAGE = 4096


def cold_mark(serve_file: str) -> Path:
    """Return the path of the mark of a start that reads the engine from the disk and has no record for its engine and options.

    The mark is in the runtime directory of the model's unit.
    """
    return Path(serve_file).with_name("cold")


class Piece(NamedTuple):
    """A part of a file: the index of its folder, the name of the file, offset and length in bytes."""

    folder: int
    name: str
    offset: int
    length: int


class Span(NamedTuple):
    """A part of a file, and its position on the disk. used: it was in the page cache."""

    position: int
    piece: Piece
    used: bool


class EngineFiles(NamedTuple):
    """The record of what starts of a model read of its engine.

    engine: identifies the engine; see engine_reader. asked: a digest of the model's options. folders: paths relative to the engine, of the
    folders with a file that was read and of their parents; parents come first, then they are in the order of the disk. pieces: in the order
    of the disk. whole: a start that read the pieces ahead has read hardly anything else.
    """

    engine: str
    asked: str
    folders: tuple[str, ...]
    pieces: tuple[Piece, ...]
    whole: bool = False

    @property
    def size(self) -> int:
        """The bytes of all pieces."""
        return sum(piece.length for piece in self.pieces)

    def to_json(self) -> str:
        """Return the text of the file that holds the record."""
        return json.dumps({"version": VERSION, **self._asdict()}, ensure_ascii=True, separators=(",", ":"))


def read_engine_files(content: bytes) -> EngineFiles | None:
    """Read the text that `to_json` wrote; return None for any other text.

    User vllm owns the file and may have written anything to it. The reader runs as user vllm, too.
    """
    try:
        given = json.loads(content)
        if given["version"] != VERSION:
            return None
        folders = tuple(str(folder) for folder in given["folders"])
        pieces = tuple(Piece(int(folder), str(name), int(offset), int(length)) for folder, name, offset, length in given["pieces"])
        kept = EngineFiles(str(given["engine"]), str(given["asked"]), folders, pieces, given["whole"] is True)
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    sound = all(0 <= piece.folder < len(folders) and piece.offset >= 0 and piece.length > 0 for piece in pieces)
    return kept if sound else None


def order_spans(spans: Iterable[Span], gap: int = GAP) -> tuple[Piece, ...]:
    """Return the used parts in the order of the disk, and the unused parts between them in gaps of at most `gap` bytes."""
    chosen: list[Piece] = []
    between: list[Piece] = []
    end = 0  # where the last used part ends on the disk
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
    """Join adjacent parts of the same file."""
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if last and (last.folder, last.name, last.offset + last.length) == (piece.folder, piece.name, piece.offset):
            joined[-1] = last._replace(length=last.length + piece.length)
        else:
            joined.append(piece)
    return joined


def split_batches(pieces: Iterable[Piece], room: int) -> list[list[Piece]]:
    """Split the pieces into batches, and long pieces into pieces of PIECE bytes. Stop at `room` bytes in total."""
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
    """Return about `count` of the pieces, spread over all of them."""
    return pieces[:: max(1, len(pieces) // count)]
