"""A config.yaml of an older version is accepted, or refused with the new name. settings/VERSION.txt lists the settings of each version."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_safe import __version__
from vllm_safe.config import spelling, value_types
from vllm_safe.config.settings import SECTIONS, Model, settings_of

RELEASED = Path(__file__).parent / "settings"


def _names(prefix: str, rows: type[object]) -> dict[str, set[str]]:
    """Return the names of the settings of a section and of the sections in it, by dotted section."""
    found = {prefix: {row.name for row in settings_of(rows)}}
    for row in settings_of(rows):
        if row.kind is value_types.SECTION:
            found |= _names(f"{prefix}.{row.name}", type(row.default))
    return found


NOW = {section: names for name, rows in {**SECTIONS, "models.NAME": Model}.items() for section, names in _names(name, rows).items()}


def _unknown(setting: str) -> str:
    """Return why a user who has `setting` in the file would get no hint at its new name, or ""."""
    section, _, name = setting.rpartition(".")
    if section not in NOW:
        return f"{section} is gone: _OTHER_NAMES in spelling.py has no way to name another section"
    if name in NOW[section] or spelling.intended_setting(name, NOW[section]):
        return ""
    return f"{setting} is gone: put its new name into _OTHER_NAMES of spelling.py"


@pytest.mark.parametrize("version", sorted(path.stem for path in RELEASED.glob("*.txt")))
def test_every_setting_of_a_release_is_known_or_leads_to_its_new_name(version: str) -> None:
    settings = (RELEASED / f"{version}.txt").read_text().split()
    assert len(settings) > 30
    assert [why for setting in settings if (why := _unknown(setting))] == []


def test_a_setting_that_leads_nowhere_is_noticed() -> None:
    assert "spelling.py" in _unknown("swap.xyzzy")
    assert "gone" in _unknown("xyzzy.size")


def test_a_renamed_setting_is_refused_with_its_new_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(spelling._OTHER_NAMES, "xyzzy", ("size",))
    assert spelling.intended_setting("xyzzy", NOW["swap"]) == "size"
    assert _unknown("swap.xyzzy") == ""


def test_this_version_has_the_list_of_all_its_settings() -> None:
    """Compare the settings with the list of this version: one that the list lacks would be forgotten once it is renamed."""
    listed = (RELEASED / f"{__version__}.txt").read_text().split()
    sections = {section.rpartition(".")[2] for section in NOW if "." in section and section != "models.NAME"}
    assert set(listed) == {f"{section}.{name}" for section, names in NOW.items() for name in names - sections}
    assert len(listed) == len(set(listed))
