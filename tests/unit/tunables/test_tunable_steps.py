"""Tunables are set and restored, also after an interrupted run and after a second change on top of the first."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from vllm_safe.common.errors import Failure
from vllm_safe.common.steps import carry_out
from vllm_safe.tunables import tunable_steps
from vllm_safe.tunables.tunable_steps import AwaitCalm, SetTunable, tunables_steps, undo_tunables_steps


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of the saved values. The fake kernel files are in the same folder, which takes the place of /sys."""
    monkeypatch.setattr(tunable_steps, "_KERNELS", f"{tmp_path}/")
    monkeypatch.setattr(tunable_steps, "_stalled", lambda: None)
    monkeypatch.setattr(tunable_steps.time, "sleep", lambda _: None)
    return tmp_path / "notes"


@pytest.fixture
def there(tmp_path: Path) -> dict[str, str]:
    values = {f"{tmp_path}/one": "75000", f"{tmp_path}/two": "0x0000", f"{tmp_path}/right": "0"}
    for path, value in values.items():
        Path(path).write_text(value)
    return values


def now(there: dict[str, str]) -> list[str]:
    return [Path(path).read_text() for path in there]


def test_set_and_taken_back(notes: Path, there: dict[str, str]) -> None:
    one, two, right = there
    carry_out(tunables_steps({one: "12345", two: "y00000", right: "0"}, there, notes), dry_run=False)
    assert now(there) == ["12345", "y00000", "0"]
    assert notes.read_text() == f"{one} 75000\n{two} 0x0000\n"
    carry_out(undo_tunables_steps(notes), dry_run=False)
    assert now(there) == ["75000", "0x0000", "0"]
    assert not notes.exists()
    assert undo_tunables_steps(notes) == ()


def test_what_was_noted_first_is_what_is_restored(notes: Path, there: dict[str, str]) -> None:
    """The process was killed between saving and changing, or the configuration was edited between two changes."""
    one = next(iter(there))
    carry_out(tunables_steps({one: "11111"}, there, notes), dry_run=False)
    carry_out(tunables_steps({one: "22222"}, {one: "11111"}, notes), dry_run=False)
    assert Path(one).read_text() == "22222"
    carry_out(undo_tunables_steps(notes), dry_run=False)
    assert Path(one).read_text() == "75000"


def test_nothing_to_do_writes_nothing(notes: Path, there: dict[str, str]) -> None:
    assert tunables_steps(there, there, notes) == ()


def test_the_note_is_written_before_anything_is_changed(notes: Path, there: dict[str, str]) -> None:
    lines: list[str] = []
    carry_out(tunables_steps(dict.fromkeys(there, "9"), there, notes), dry_run=True, say=lines.append)
    assert [line.split()[1] for line in lines] == ["wait", "write", "set", "set", "set"]
    assert now(there) == ["75000", "0x0000", "0"]


@pytest.mark.parametrize("name", ["", "none"])
def test_a_kernel_that_refuses_or_has_no_such_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(Failure, match="cannot set"):
        SetTunable(str(tmp_path / name), "0").run()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["/etc/passwd x\n", "/sys\n", "\udcff", "/sys/a b c\n"])
def test_notes_that_are_none_of_ours_change_nothing(tmp_path: Path, text: str) -> None:
    notes = tmp_path / "notes"
    notes.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert undo_tunables_steps(notes) == ()


@pytest.mark.parametrize(("readings", "naps"), [([None, None], 1), ([7, 7], 1), ([1, 2, 3, 3], 3)])
def test_it_waits_until_no_memory_is_taken_back(readings: list[int | None], naps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    left, slept = iter(readings), []
    monkeypatch.setattr(tunable_steps, "_stalled", lambda: next(left))
    monkeypatch.setattr(tunable_steps.time, "sleep", slept.append)
    AwaitCalm(calm=0.5).run()
    assert slept == [0.5] * naps


def test_where_it_never_ends_nothing_is_changed(notes: Path, there: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    stalled, clock = itertools.count(), itertools.count(step=7)
    monkeypatch.setattr(tunable_steps, "_stalled", lambda: next(stalled))
    monkeypatch.setattr(tunable_steps.time, "monotonic", lambda: next(clock))
    with pytest.raises(Failure, match="short of memory for 30 s"):
        carry_out(tunables_steps(dict.fromkeys(there, "9"), there, notes), dry_run=False)
    assert now(there) == ["75000", "0x0000", "0"]
    assert not notes.exists()
