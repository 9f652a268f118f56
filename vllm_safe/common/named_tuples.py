"""`NamedTuple` for the guard: that of `typing`, with the `re` that it imports, needs 1.2 MB more, all of it locked."""

from __future__ import annotations

from collections import namedtuple

__all__ = ["NamedTuple"]
TYPE_CHECKING = False  # type checkers take a variable of this name for true
if TYPE_CHECKING:
    from typing import NamedTuple
else:

    class _Type(type):
        """Makes a named tuple of a class body. Its annotations are the fields, in a module with `from __future__ import annotations`."""

        def __new__(cls, name: str, _: tuple[type, ...], body: dict[str, object]) -> type:
            fields = list(body["__annotations__"])
            defaults = [body.pop(field) for field in fields if field in body]
            made = namedtuple(name, fields, defaults=defaults, module=body["__module__"])  # noqa: PYI024 - see above
            return type(name, (made,), {"__slots__": (), **body})

    NamedTuple = type.__new__(_Type, "NamedTuple", (), {})
