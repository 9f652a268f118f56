"""The places of windows in a ring."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_safe.engine.as_engine.vllm_safe_loader.ring_layout import PAGE, RingPlace, decide_capacity, decide_window, place_windows, spanned
from vllm_safe.engine.as_engine.vllm_safe_loader.shard_layout import ReadWindow, StoredTensor, split_into_windows

MIB = 1 << 20


def tensors(*sizes: int) -> list[StoredTensor]:
    return [StoredTensor(str(end), "U8", (size,), end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True)]


def windows(*sizes: int) -> list[ReadWindow]:
    return [ReadWindow("file", (tensor,)) for tensor in tensors(*sizes)]


@pytest.mark.parametrize(("begin", "end", "size"), [(0, 1, PAGE), (PAGE - 1, PAGE + 1, 2 * PAGE), (PAGE, 2 * PAGE, PAGE), (5, 5, 0)])
def test_whole_pages_are_read(begin: int, end: int, size: int) -> None:
    assert spanned(begin, end) == size


def test_windows_follow_each_other_and_wait_for_those_whose_place_they_take() -> None:
    places = place_windows(windows(*[2 * PAGE] * 5), 6 * PAGE)
    assert [(place.offset, place.after) for place in places] == [(0, -1), (2 * PAGE, -1), (4 * PAGE, -1), (0, 0), (2 * PAGE, 1)]


def test_a_window_of_more_than_a_third_is_not_in_the_ring() -> None:
    places = place_windows(windows(2 * PAGE, 3 * PAGE, 0, PAGE), 6 * PAGE)
    assert [place.offset for place in places] == [0, 2 * PAGE, None, 5 * PAGE]
    places = place_windows(windows(2 * PAGE, 3 * PAGE, 0, 2 * PAGE), 6 * PAGE)
    assert [place.offset for place in places] == [0, None, None, 2 * PAGE]


@given(st.lists(st.integers(0, 12 * PAGE), max_size=40), st.integers(1, 30).map(lambda pages: pages * PAGE))
def test_nothing_is_overwritten_before_all_are_done_with_it(sizes: list[int], capacity: int) -> None:
    places = place_windows(windows(*sizes), capacity)
    assert [place.window for place in places] == windows(*sizes)
    for index, place in enumerate(places):
        if place.offset is None:
            continue
        assert place.offset % PAGE == 0
        assert place.offset + place.size <= capacity
        assert place.after < max(index - 1, 0)
        assert not any(_overlap(place, other) for other in places[place.after + 1 : index])
    assert all(place.offset is not None for place in places if 0 < 3 * place.size <= capacity)


def _overlap(one: RingPlace, other: RingPlace) -> bool:
    if one.offset is None or other.offset is None:
        return False
    return one.offset < other.offset + other.size and other.offset < one.offset + one.size


def test_a_small_checkpoint_has_a_ring_of_its_size() -> None:
    stored = tensors(MIB, MIB)
    capacity = decide_capacity(1 << 40, stored)
    assert capacity == 2 * MIB
    assert all(
        place.offset is not None for place in place_windows(list(split_into_windows("file", stored, decide_window(capacity))), capacity)
    )


def test_the_ring_has_three_times_the_largest_tensor_that_fits_and_never_more_than_its_share() -> None:
    assert decide_capacity(1 << 40, tensors(*[120 * MIB] * 9)) == 360 * MIB
    assert decide_capacity(1 << 40, tensors(*[2500 * MIB, *[120 * MIB] * 9])) == 360 * MIB
    assert decide_capacity(400 * MIB, tensors(*[120 * MIB] * 9)) == 64 * MIB
    assert decide_capacity(40 * MIB, tensors(*[8 * MIB] * 9)) == 30 * MIB


def test_too_little_memory_is_no_ring() -> None:
    assert decide_capacity(3 * MIB, tensors(*[MIB] * 9)) == decide_capacity(-1, tensors(MIB)) == 0
