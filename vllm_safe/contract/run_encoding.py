"""Encoding of a recorded run as lines of JSON, and decoding.

A sample is an array in the order of the fields of Sample; everything else is an object with the names of the fields. The writer may have
been an older version, a newer one, or user vllm. Hence a value of the wrong type, or a number that is not finite, counts as missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any

from vllm_safe.contract.recorded_run import End, Event, Gpu, Sample, Start

_BYTES = ("memory", "anon", "shmem", "file", "swap", "ram_available", "swap_free", "read", "tokens", "requests")
_WHOLE = ("temperature", "lanes", "generation")  # of a GPU
_LONGEST_TEXT = 4000  # characters
_BEYOND = 1 << 62  # no size, count or time is as large


def to_line(value: object) -> str:
    """Return the value as one line of JSON, with its newline."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False) + "\n"


def from_line(line: str | bytes) -> Any:  # noqa: ANN401 - any value of JSON
    """Read a line that `to_line` wrote. Return None for anything else, such as a line torn by a power cut."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


# --- single values


def integer(value: object) -> int | None:
    """Return the value as a whole number, or None if it is not a finite number or too large for a size."""
    found = number(value)
    return None if found is None else int(found)


def number(value: object) -> float | None:
    """Return the value if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_BEYOND < value < _BEYOND:
        return None
    return value if isfinite(value) else None


def text(value: object) -> str:
    """Return the beginning of a text, or "" for any other value."""
    return value[:_LONGEST_TEXT] if isinstance(value, str) else ""


def mapping(value: object) -> dict[str, Any]:
    """Return the value if it is an object of JSON, else {}."""
    return value if isinstance(value, dict) else {}


def integers(value: object) -> dict[str, int]:
    """Return those items of an object that are whole numbers."""
    return {key: found for key, item in mapping(value).items() if (found := integer(item)) is not None}


def texts(value: object) -> tuple[str, ...]:
    """Return those items of an array that are texts."""
    return tuple(item[:_LONGEST_TEXT] for item in value if isinstance(item, str)) if isinstance(value, list) else ()


# --- the values of a run


def pack_sample(sample: Sample) -> list[Any]:
    """Return a sample as an array, without missing values at its end.

    Hundredths of a second for the time, whole bytes, and hundredths of a per cent for shares are precise enough.
    """
    values: list[Any] = [round(value, 4) if isinstance(value, float) else value for value in sample]
    values[0] = round(sample.time, 2)
    values[Sample._fields.index("gpus")] = pack_gpus(sample.gpus) or None
    for name in ("disk_read", "disk_write"):
        index = Sample._fields.index(name)
        values[index] = None if values[index] is None else int(values[index])
    return _without_end(values)


def pack_gpus(gpus: tuple[Gpu, ...]) -> list[list[Any]]:
    """Return GPUs as arrays, likewise. Whole watts, and hundredths for shares, are precise enough."""
    return [_without_end([gpu.used, gpu.total, *(_short(getattr(gpu, name), name) for name in Gpu._fields[2:])]) for gpu in gpus]


def _short(value: float | None, name: str) -> float | None:
    """Return a figure of a GPU as the number with the shortest text: 0 for 0.0."""
    if value is None:
        return None
    found = round(value, 0 if name == "power" else 2)
    return int(found) if found == int(found) else found


def _without_end(values: list[Any]) -> list[Any]:
    while values[-1] is None:
        values.pop()
    return values


def unpack_sample(values: object) -> Sample | None:
    """Return the sample, or None if it has no time. Fields that a newer version added at the end are ignored."""
    if not isinstance(values, list) or len(values) < 2 or number(values[0]) is None:
        return None
    given = dict(zip(Sample._fields, values, strict=False))
    readers: dict[str, Callable[[object], Any]] = {"phase": text, "gpus": unpack_gpus} | dict.fromkeys(_BYTES, integer)
    return Sample(**{name: readers.get(name, number)(value) for name, value in given.items()})


def unpack_gpus(value: object) -> tuple[Gpu, ...]:
    """Return the GPUs of such arrays, of which an older version wrote only the first three values."""
    cards = [card for card in value if isinstance(card, list) and len(card) >= 3] if isinstance(value, list) else []
    return tuple(_gpu(*card[: len(Gpu._fields)]) for card in cards)


def _gpu(used: object, total: object, busy: object, *more: object) -> Gpu:
    given = dict(zip(Gpu._fields[3:], more, strict=False))
    figures: dict[str, Any] = {name: (integer if name in _WHOLE else number)(value) for name, value in given.items()}
    return Gpu(integer(used) or 0, integer(total) or 0, number(busy) or 0.0, **figures)


def unpack_event(values: object) -> Event | None:
    """Return the event, or None if it has no time or no kind."""
    given = mapping(values)
    time, kind = number(given.get("time")), text(given.get("kind"))
    return None if time is None or not kind else Event(time, kind, text(given.get("text")), mapping(given.get("data")))


def unpack_start(values: object) -> Start | None:
    """Return the start, or None if it has no time, no model's name or no run id."""
    given = mapping(values)
    name, run, time = text(given.get("name")), text(given.get("run")), number(given.get("time"))
    if time is None or not name or not run:
        return None
    return Start(
        name=name,
        run=run,
        time=time,
        boot=text(given.get("boot")),
        command=given.get("command") is True,
        restart=integer(given.get("restart")) or 0,
        health=text(given.get("health")),
        limits=integers(given.get("limits")),
        host=mapping(given.get("host")),
        versions={key: text(value) for key, value in mapping(given.get("versions")).items()},
        args=mapping(given.get("args")),
        profile=text(given.get("profile")),
        times={key: span for key, value in mapping(given.get("times")).items() if (span := number(value)) is not None},
        env={key: text(value) for key, value in mapping(given.get("env")).items()},
    )


def unpack_end(values: object) -> End | None:
    """Return the end, or None if it has no time."""
    given = mapping(values)
    time = number(given.get("time"))
    if time is None:
        return None
    words: Mapping[str, str] = {key: text(given.get(key)) for key in ("cause", "reason", "result", "exit_code", "exit_status", "error")}
    memory, swap = (integers(given.get(key)) for key in ("memory_events", "swap_events"))
    return End(time, **words, memory_events=memory, swap_events=swap, served=given.get("served") is True)
