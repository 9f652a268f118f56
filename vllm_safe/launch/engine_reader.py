"""Steps of a start: read the engine's files before vLLM does, in the order of the disk, and record which ones the start has read.

The process that is about to become the server reads the files. Once the server is ready, a separate process writes the record, at the idle
I/O class. Neither can make a start fail.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from vllm_safe.common import libc, paths
from vllm_safe.common.sizes import format_size
from vllm_safe.contract.launch_file import Launch
from vllm_safe.contract.small_files import READ, read_regular, write_whole
from vllm_safe.launch import page_cache
from vllm_safe.launch.engine_files import (
    PAGE,
    EngineFiles,
    Piece,
    Span,
    cold_mark,
    order_spans,
    read_engine_files,
    sample_pieces,
    split_batches,
)
from vllm_safe.launch.processes import own_cgroup

RECORDS = paths.CACHE / "engine-files"  # NAME.json below it
_MOST_BYTES = 1 << 24  # bytes; a record of 10,000 pieces takes half a megabyte
_SHARE = 2  # the engine's files get one part in this many of the page cache that the unit may use
_CACHED_SHARE = 0.9  # if this share of the sampled pieces is in the page cache, the other pieces count as cached, too
_COLD_SHARE = 0.1  # if no more than this share of the sampled modules, or pieces, is in the page cache, the engine counts as cold
_WHOLE = 1.05  # a record that a start makes larger by a higher factor was not whole
_SAMPLED_PACKAGES = 16  # packages, about
_AHEAD = 2  # batches that are requested at once


def read_ahead_of_server(launch: Launch, say: Callable[[str], object]) -> None:
    """Read ahead the engine files that the model's last cold start read, unless they are in the page cache. `say` logs a line."""
    if launch.argv[:1] != (f"{paths.ENGINE}/bin/vllm",):
        return  # a server that is not our engine
    try:
        engine = _engine_folder()
        record = _read_record(launch.name)
        if not page_cache.is_on_disk(engine):
            return
        if record is None or record.engine != _identity(engine):
            if _is_cold(engine):
                cold_mark(launch.serve_file).touch()
            return
        cached = _cached_share(engine, record)
        if cached >= _CACHED_SHARE:
            return
        if record.asked != _digest(launch) or (cached <= _COLD_SHARE and not record.whole):
            cold_mark(launch.serve_file).touch()
        _read(engine, record, say)
    except (OSError, MemoryError, ValueError) as error:
        say(f"the engine's files were not read ahead: {error}")


def record_used_files(launch: Launch) -> None:
    """Record what this start has read of the engine: those parts of its files that are in the page cache now.

    A record that an earlier start made with the same options is completed: that start may have lost pages before it recorded them.
    """
    with suppress(OSError, MemoryError, ValueError):
        libc.set_io_priority(0, libc.IO_CLASSES["idle"])
        cold_mark(launch.serve_file).unlink()
        engine = _engine_folder()
        record, before = EngineFiles(_identity(engine), _digest(launch), (), ()), _read_record(launch.name)
        known = before if before and (before.engine, before.asked) == (record.engine, record.asked) else record
        folders, pieces = _find_used(engine, known)
        record = record._replace(folders=folders, pieces=pieces)
        content = record._replace(whole=record.size <= _WHOLE * known.size).to_json().encode()
        if len(content) <= _MOST_BYTES:
            RECORDS.mkdir(mode=0o750, exist_ok=True)
            write_whole(str(RECORDS / f"{launch.name}.json"), content)


def _engine_folder() -> str:
    return os.path.realpath(paths.ENGINE)


def _identity(engine: str) -> str:
    """Return what identifies the engine. It differs for another engine, and for the same one built again.

    Inode numbers cannot identify it, since those of an overlay are not permanent.
    """
    return f"{engine} {Path(engine).stat().st_mtime_ns}"


def _digest(launch: Launch) -> str:
    return hashlib.sha256(json.dumps(launch.serve_args, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _read_record(name: str) -> EngineFiles | None:
    content = read_regular(RECORDS / f"{name}.json", _MOST_BYTES)
    return None if content is None else read_engine_files(content)


def _path_of(engine: str, record: EngineFiles, piece: Piece) -> str:
    return f"{engine}/{record.folders[piece.folder]}/{piece.name}"


def _cached_share(engine: str, record: EngineFiles) -> float:
    """Return which share of the record's pieces is in the page cache, judged by some of them."""
    found = [_is_resident(_path_of(engine, record, piece), piece.offset) for piece in sample_pieces(record.pieces)]
    return sum(found) / len(found) if found else 1.0


def _is_cold(engine: str) -> bool:
    """Return whether hardly anything of the engine is in the page cache, judged by the `__init__` modules of some packages.

    After an installation all of the engine is in the page cache. It then does not show what a start needs.
    """
    packages = sorted(
        entry.path for site in Path(engine).glob("lib/python3*/site-packages") for entry in os.scandir(site) if entry.is_dir()
    )
    sample = (Path(folder, "__pycache__") for folder in packages[:: max(1, len(packages) // _SAMPLED_PACKAGES)])
    found = [_is_resident(str(module), 0) for folder in sample for module in folder.glob("__init__.*.pyc")]
    return sum(found) <= _COLD_SHARE * len(found)


def _is_resident(path: str, offset: int) -> bool:
    try:
        file = os.open(path, READ)
    except OSError:
        return True  # nothing to read
    try:
        length = min(os.fstat(file).st_size - offset, PAGE)
        return length <= 0 or page_cache.resident_pages(file, offset, length) == b"\1"
    finally:
        os.close(file)


def _read(engine: str, record: EngineFiles, say: Callable[[str], object]) -> None:
    for folder in record.folders:  # reads the blocks of the folder, and those with the inodes of its files
        with suppress(OSError), os.scandir(f"{engine}/{folder}") as entries:
            for entry in entries:
                entry.stat(follow_symlinks=False)
                break
    room = page_cache.read_cache_room(own_cgroup()) // _SHARE
    batches = split_batches(record.pieces, room)
    asked: list[Piece] = []
    for batch in batches:
        page_cache.request_reading((_path_of(engine, record, piece), piece.offset, piece.length) for piece in batch)
        asked.append(batch[-1])
        if len(asked) >= _AHEAD:
            _wait_for(engine, record, asked.pop(0))
    for piece in asked:
        _wait_for(engine, record, piece)
    size = sum(piece.length for batch in batches for piece in batch)
    say(f"read {format_size(size)} of the engine's files ahead of vLLM, in disk order")


def _wait_for(engine: str, record: EngineFiles, piece: Piece) -> None:
    page_cache.wait_for_page(_path_of(engine, record, piece), piece.offset)


def _find_used(engine: str, known: EngineFiles) -> tuple[tuple[str, ...], tuple[Piece, ...]]:
    """Return those parts of the engine's files that are in the page cache or `known`, and their folders, both in the order of the disk."""
    parts: dict[str, list[Piece]] = {}
    for piece in known.pieces:
        parts.setdefault(os.path.normpath(_path_of(engine, known, piece)), []).append(piece)
    spans: list[tuple[str, Span]] = []
    for folder, _, names in os.walk(engine):
        own = [(folder, span) for name in names for span in _spans(folder, name, parts.get(f"{folder}/{name}", ()))]
        spans += own if any(span.used for _, span in own) else ()
    used = {folder for folder, _ in spans}
    used |= {str(parent) for folder in used for parent in Path(folder).parents if engine in {str(parent), *map(str, parent.parents)}}
    ordered = tuple(sorted(used, key=_folder_position))
    number = {folder: index for index, folder in enumerate(ordered)}
    pieces = order_spans(Span(span.position, span.piece._replace(folder=number[folder]), span.used) for folder, span in spans)
    return tuple(os.path.relpath(folder, engine) for folder in ordered), pieces


def _folder_position(folder: str) -> tuple[int, int]:
    """Return the key by which folders are sorted: their depth, since parents are read first, then their position on the disk."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        extents = page_cache.file_extents(file)
        return folder.count("/"), extents[0][1] if extents else os.fstat(file).st_ino
    finally:
        os.close(file)


def _spans(folder: str, name: str, known: Iterable[Piece]) -> Iterator[Span]:
    """Yield the parts of a file. They are used if they are in the page cache or `known`."""
    try:
        file = os.open(f"{folder}/{name}", READ)
    except OSError:
        return  # a symlink, or deleted meanwhile
    try:
        shown = os.fstat(file)
        if not stat.S_ISREG(shown.st_mode) or not shown.st_size:
            return
        pages = bytearray(page_cache.resident_pages(file, 0, shown.st_size))
        for piece in known:
            part = pages[piece.offset // PAGE : -(-(piece.offset + piece.length) // PAGE)]
            pages[piece.offset // PAGE : piece.offset // PAGE + len(part)] = b"\1" * len(part)
        end = len(pages) * PAGE
        # If the file system does not report extents, sort by inode number: within one installation, that is about the order of the disk.
        for offset, position, length in page_cache.file_extents(file) or ((0, shown.st_ino * PAGE, end),):
            yield from _split_extent(name, pages, offset, min(offset + length, end), position)
    finally:
        os.close(file)


def _split_extent(name: str, pages: bytearray, begin: int, end: int, position: int) -> Iterator[Span]:
    """Split an extent into parts of which either all pages are used, or none."""
    at = begin
    while at < end:
        used = pages[at // PAGE]
        after = pages.find(1 - used, at // PAGE, end // PAGE)
        stop = end if after < 0 else after * PAGE
        yield Span(position + at - begin, Piece(0, name, at, stop - at), bool(used))
        at = stop
