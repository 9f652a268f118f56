"""Power limits as people write them, and as they are written."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_safe.config.power_types import EVERY_CARD, PowerCap, write_power_caps
from vllm_safe.config.reader import load
from vllm_safe.decide.effective_settings import effective_settings

UUID = "GPU-0eb5a1f8-4e15-94d7-4ea2-259d628a7a5c"


def read(text: str, folder: Path) -> dict[str, PowerCap] | None:
    file = folder / "config.yaml"
    file.write_text(f"gpu: {{power_limit: {text}}}\nmodels: {{x: {{command: [/bin/true]}}}}\n")
    config = load(file)
    (shown,) = (setting for setting in effective_settings(config) if setting.path == ("gpu", "power_limit"))
    caps = config.gpu.power_limit
    assert shown.value == (None if caps is None else {name: str(cap) for name, cap in caps.items()})
    assert shown.text == ("none" if caps is None else write_power_caps(caps))
    return None if caps is None else dict(caps)


@pytest.mark.parametrize(
    ("text", "caps"),
    [
        ("75%", {EVERY_CARD: PowerCap(75, is_percent=True)}),
        ("82.5 %", {EVERY_CARD: PowerCap(82.5, is_percent=True)}),
        ("170W", {EVERY_CARD: PowerCap(170, is_percent=False)}),
        ("170 watts", {EVERY_CARD: PowerCap(170, is_percent=False)}),
        ("{0: 170w, 1: 75%}", {"0": PowerCap(170, is_percent=False), "1": PowerCap(75, is_percent=True)}),
        (f"{{{UUID}: 170W, 0000:01:00.0: 75%}}", {UUID: PowerCap(170, is_percent=False), "0000:01:00.0": PowerCap(75, is_percent=True)}),
        ("{'00000000:01:00.0': 75%}", {"00000000:01:00.0": PowerCap(75, is_percent=True)}),
        ("none", None),
    ],
)
def test_what_people_write_is_understood(text: str, caps: dict[str, PowerCap] | None, tmp_path: Path) -> None:
    assert read(text, tmp_path) == caps


@pytest.mark.parametrize(
    "caps", [{EVERY_CARD: PowerCap(75, is_percent=True)}, {"0": PowerCap(82.5, is_percent=True), UUID: PowerCap(170, is_percent=False)}]
)
def test_what_is_written_is_read_as_the_same(caps: dict[str, PowerCap], tmp_path: Path) -> None:
    assert read(write_power_caps(caps), tmp_path) == caps


def test_a_limit_in_milliwatts() -> None:
    assert PowerCap(75, is_percent=True).of(170000) == 127500
    assert PowerCap(170, is_percent=False).of(350000) == 170000
