"""The GPUs that CUDA_VISIBLE_DEVICES names."""

from __future__ import annotations

import pytest

from vllm_safe.driver.visible_devices import visible_names, visible_numbers


@pytest.mark.parametrize(
    ("variable", "names", "numbers"),
    [
        (None, None, None),
        ("", (), ()),
        ("0, 2", ("0", "2"), (0, 2)),
        ("-1", (), ()),
        ("1,x,0", ("1",), (1,)),
        ("GPU-0a,1", ("GPU-0a", "1"), None),
    ],
    ids=["not set: all", "none", "by number", "the way to hide all", "up to an invalid name", "by UUID"],
)
def test_visible_devices(variable: str | None, names: tuple[str, ...] | None, numbers: tuple[int, ...] | None) -> None:
    assert (visible_names(variable), visible_numbers(variable)) == (names, numbers)
