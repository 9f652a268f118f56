"""Power limits are set and restored, also after an interrupted run, by cards that refuse, and by cards that are gone."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.builders.fake_nvml import tell_cards, uuid_of
from vllm_safe.common.errors import Failure
from vllm_safe.common.steps import carry_out
from vllm_safe.power import power_steps as power_steps_module
from vllm_safe.power.power_facts import PowerCard, PowerNote, SavedLimit, read_power_note
from vllm_safe.power.power_steps import LimitChange, SetPowerLimit, change_power_limit, power_steps, undo_power_steps

FIRST, SECOND = (PowerCard(number, uuid_of(number), "", limit=170000, default=170000, least=100000, most=200000) for number in (0, 1))


@pytest.fixture
def told(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file with the state of two cards in the library."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library))
    monkeypatch.setenv("FAKE_NVML", str(tmp_path / "told"))
    monkeypatch.setenv("FAKE_NVML_ADMIN", "1")
    tell_cards(tmp_path / "told", "", "persistence 1")
    return tmp_path / "told"


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    return tmp_path / "power"


def state(told: Path) -> list[tuple[str, str]]:
    """Return limit and persistence mode of each card."""
    return re.findall(r"^  power (\S+).*\n  persistence (\d)", told.read_text(), re.MULTILINE)


def test_set_and_taken_back(told: Path, notes: Path) -> None:
    carry_out(power_steps("75%", {uuid_of(0): 127500, uuid_of(1): 127500}, (FIRST, SECOND), notes), dry_run=False)
    assert state(told) == [("127.5", "1"), ("127.5", "1")]
    saved = {uuid_of(0): SavedLimit(170000, persistent=False), uuid_of(1): SavedLimit(170000, persistent=False)}
    assert read_power_note(notes) == PowerNote("75%", saved)
    carry_out(undo_power_steps(notes), dry_run=False)
    assert state(told) == [("170", "0"), ("170", "0")]
    assert not notes.exists()
    assert undo_power_steps(notes) == ()


def test_a_card_in_persistence_mode_stays_in_it(told: Path, notes: Path) -> None:
    notes.write_text(PowerNote("75%", {uuid_of(1): SavedLimit(150000, persistent=True)}).to_json())
    carry_out(undo_power_steps(notes), dry_run=False)
    assert state(told) == [("170", "0"), ("150", "1")]


def test_what_was_saved_first_is_what_is_restored(told: Path, notes: Path) -> None:
    """The process was killed between saving and setting, or the setting was edited between two starts."""
    carry_out(power_steps("75%", {uuid_of(0): 127500}, (FIRST,), notes), dry_run=False)
    limited = PowerCard(**{**vars(FIRST), "limit": 127500, "persistent": True})
    carry_out(power_steps("150W", {uuid_of(0): 150000}, (limited,), notes), dry_run=False)
    assert state(told)[0] == ("150", "1")
    carry_out(undo_power_steps(notes), dry_run=False)
    assert state(told)[0] == ("170", "0")


def test_a_card_that_the_setting_no_longer_names_gets_its_own_limit_back(told: Path, notes: Path) -> None:
    carry_out(power_steps("75%", {uuid_of(0): 127500, uuid_of(1): 127500}, (FIRST, SECOND), notes), dry_run=False)
    limited = [PowerCard(**{**vars(card), "limit": 127500, "persistent": True}) for card in (FIRST, SECOND)]
    carry_out(power_steps("{1: 75%}", {uuid_of(1): 127500}, tuple(limited), notes), dry_run=False)
    assert state(told) == [("170", "0"), ("127.5", "1")]
    assert (read_power_note(notes) or PowerNote()).before == {uuid_of(1): SavedLimit(170000, persistent=False)}
    carry_out(power_steps("", {}, tuple(limited), notes), dry_run=False)
    assert (state(told), notes.exists()) == ([("170", "0"), ("170", "0")], False)


def test_what_is_in_force_needs_no_step(notes: Path) -> None:
    limited = PowerCard(**{**vars(FIRST), "limit": 127500})
    notes.write_text(PowerNote("75%", {uuid_of(0): SavedLimit(170000, persistent=False)}).to_json())
    assert power_steps("75%", {uuid_of(0): 127500}, (limited,), notes) == ()
    (renamed,) = power_steps("127.5W", {uuid_of(0): 127500}, (limited,), notes)
    assert renamed.describe().startswith("write ")
    assert power_steps("", {}, (limited,), notes / "none") == ()


def test_the_note_is_written_before_anything_is_changed(told: Path, notes: Path) -> None:
    lines: list[str] = []
    carry_out(power_steps("75%", {uuid_of(0): 127500}, (FIRST,), notes), dry_run=True, say=lines.append)
    assert lines == [f"would write {notes} (root:root 0644)", "would set the power limit of GPU 0 to 127.5 W"]
    assert state(told)[0] == ("170", "0")


def test_without_the_right_it_is_refused_with_the_card(told: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_NVML_ADMIN", "0")
    with pytest.raises(Failure, match=r"the power limit of GPU 0 cannot be set: .*Insufficient Permissions") as caught:
        SetPowerLimit(uuid_of(0), "GPU 0", 127500).run()
    assert caught.value.hint == "Run it as root."
    assert state(told)[0] == ("170", "0")


def test_a_limit_that_does_not_hold_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power_steps_module, "change_power_limit", lambda *_: LimitChange(170000))
    with pytest.raises(Failure, match=r"the power limit of GPU 0 is 170 W, although 127.5 W was set"):
        SetPowerLimit(uuid_of(0), "GPU 0", 127500).run()


def test_a_driver_that_hangs_holds_nothing_up(told: Path) -> None:
    told.with_name("told.slow").touch()
    change = change_power_limit(uuid_of(0), SavedLimit(127500, persistent=True), seconds=1)
    assert change.problem == "the NVIDIA driver did not answer within 1 s"
    assert change.hint


def test_a_library_that_crashes_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.c").write_text("int nvmlInitWithFlags(int flags) { return *(volatile int *)(long)flags; }\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "libnvidia-ml.so.1", tmp_path / "libnvidia-ml.c"], check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    assert change_power_limit(uuid_of(0), SavedLimit(1, persistent=True)).problem == "NVIDIA's library ended the program that called it"


def test_a_card_that_refuses_keeps_no_other_from_its_limit(told: Path, notes: Path) -> None:
    before = {uuid_of(0): SavedLimit(999000, persistent=False), uuid_of(1): SavedLimit(150000, persistent=True)}
    notes.write_text(PowerNote("75%", before).to_json())
    with pytest.raises(Failure, match=f"{uuid_of(0)} keeps its power limit: "):
        carry_out(undo_power_steps(notes), dry_run=False)
    assert state(told)[1] == ("150", "1")
    assert notes.exists(), "the next attempt knows what to restore"


@pytest.mark.parametrize("gone", ["lost", "removed", "no driver"])
def test_a_card_that_is_gone_needs_no_limit(told: Path, notes: Path, gone: str) -> None:
    notes.write_text(PowerNote("75%", {uuid_of(1): SavedLimit(170000, persistent=False)}).to_json())
    if gone == "no driver":
        told.unlink()
    else:
        tell_cards(told, "", *(["lost 1"] if gone == "lost" else []))
    carry_out(undo_power_steps(notes), dry_run=False)
    assert not notes.exists()
