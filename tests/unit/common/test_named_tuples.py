"""Named tuples without `typing` (vllm_safe/common/named_tuples.py): those of `typing` are what they have to be like."""

from __future__ import annotations

import typing

import pytest

from vllm_safe.common.named_tuples import NamedTuple


class Ours(NamedTuple):
    """One."""

    name: str
    size: int = 3

    @property
    def double(self) -> int:
        """Twice the size."""
        return 2 * self.size


class Theirs(typing.NamedTuple):
    """One."""

    name: str
    size: int = 3

    @property
    def double(self) -> int:
        """Twice the size."""
        return 2 * self.size


@pytest.mark.parametrize("of", [Ours, Theirs])
def test_it_is_like_that_of_typing(of: type[Ours | Theirs]) -> None:
    one = of("a")
    assert (one, one.double, one._replace(size=4), of._fields) == (("a", 3), 6, ("a", 4), ("name", "size"))
    assert (repr(one), of.__doc__) == (f"{of.__name__}(name='a', size=3)", "One.")
    assert not hasattr(one, "__dict__")
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'name'"):
        of()  # type: ignore[call-arg]
    with pytest.raises(AttributeError):
        one.name = "b"  # type: ignore[misc]
