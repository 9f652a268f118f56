"""What is kept of the engine's files, and the order in which they are read."""

from __future__ import annotations

import json

import pytest

from vllm_safe.common.sizes import KIB, MIB
from vllm_safe.launch.engine_files import (
    BATCH,
    BATCH_PIECES,
    PIECE,
    EngineFiles,
    Piece,
    Span,
    cold_mark,
    order_spans,
    read_engine_files,
    sample_pieces,
    split_batches,
)

KEPT = EngineFiles("/engine 7", "abc", ("lib", "lib/torch"), (Piece(1, "a.so", 0, 8192), Piece(0, "b.pyc", 4096, 10)))


def test_what_is_kept_is_read_again() -> None:
    for kept in (KEPT, KEPT._replace(whole=True)):
        assert read_engine_files(kept.to_json().encode()) == kept


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"folders": 3},
        {"folders": ["lib"]},  # a piece is in the second
        {"pieces": [[0, "a"]]},
        {"pieces": [[0, "a", -4096, 1]]},
        {"pieces": [[0, "a", 0, 0]]},
        {"pieces": [[-1, "a", 0, 1]]},
        {"pieces": [[0, "a", "x", 1]]},
    ],
)
def test_anything_else_is_nothing(change: dict[str, object]) -> None:
    assert read_engine_files(json.dumps(json.loads(KEPT.to_json()) | change).encode()) is None


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"[" * 100_000, b'{"version": 1}'])
def test_no_text_makes_it_fail(content: bytes) -> None:
    assert read_engine_files(content) is None


def test_the_parts_are_in_the_order_of_the_disk_and_small_gaps_are_read_too() -> None:
    spans = [
        Span(900 * KIB, Piece(0, "far", 0, 4096), used=True),
        Span(0, Piece(0, "one", 0, 4096), used=True),
        Span(4096, Piece(1, "unused", 0, 4096), used=False),
        Span(8192, Piece(0, "two", 0, 4096), used=True),
        Span(12288, Piece(0, "two", 4096, 500 * KIB), used=False),
        Span(600 * KIB, Piece(0, "after a gap that is too long", 0, 4096), used=False),
    ]
    assert [(piece.name, piece.offset) for piece in order_spans(spans)] == [("one", 0), ("unused", 0), ("two", 0), ("far", 0)]


def test_parts_of_a_file_that_follow_one_another_are_one() -> None:
    spans = [
        Span(0, Piece(0, "lib.so", 0, 4096), used=True),
        Span(4096, Piece(0, "lib.so", 4096, 8192), used=False),
        Span(12288, Piece(0, "lib.so", 12288, 4096), used=True),
    ]
    assert order_spans(spans) == (Piece(0, "lib.so", 0, 16384),)
    assert order_spans(spans, gap=4096) == (spans[0].piece, spans[2].piece)


def test_nothing_unused_is_read_before_the_first_part_and_after_the_last() -> None:
    spans = [
        Span(0, Piece(0, "a", 0, 10), used=False),
        Span(4096, Piece(0, "b", 0, 10), used=True),
        Span(8192, Piece(0, "c", 0, 10), used=False),
    ]
    assert order_spans(spans) == (Piece(0, "b", 0, 10),)


def test_a_batch_is_full_and_a_piece_is_what_one_call_reads() -> None:
    batches = split_batches([Piece(0, "large", 0, 2 * BATCH), Piece(0, "small", 4096, 100)], room=MIB << 10)
    assert [sum(piece.length for piece in batch) for batch in batches] == [BATCH, BATCH, 100]
    assert {piece.length for piece in batches[0]} == {PIECE}
    assert batches[1][0] == Piece(0, "large", BATCH, PIECE)


def test_a_batch_of_small_pieces_is_short() -> None:
    pieces = [Piece(0, str(index), 0, 100) for index in range(2 * BATCH_PIECES + 1)]
    assert [len(batch) for batch in split_batches(pieces, room=MIB)] == [BATCH_PIECES, BATCH_PIECES, 1]


def test_no_more_is_read_than_there_is_room_for() -> None:
    batches = split_batches([Piece(0, "first", 0, PIECE), Piece(0, "second", 0, PIECE)], room=PIECE + 4096)
    assert batches == [[Piece(0, "first", 0, PIECE)]]
    assert split_batches(KEPT.pieces, room=0) == []


def test_a_sample_is_from_all_parts_of_the_disk() -> None:
    pieces = [Piece(0, str(index), 0, 1) for index in range(1000)]
    sample = sample_pieces(pieces, 10)
    assert [piece.name for piece in sample] == [str(index) for index in range(0, 1000, 100)]
    assert sample_pieces(pieces[:3], 10) == pieces[:3]


def test_the_mark_is_beside_the_options_of_the_server() -> None:
    assert str(cold_mark("/run/vllm/qwen/serve.yaml")) == "/run/vllm/qwen/cold"
