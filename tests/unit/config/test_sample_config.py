"""The commented sample against the table that makes it, and the short file that an installation starts with."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from vllm_safe.config import document, value_types
from vllm_safe.config.reader import load
from vllm_safe.config.sample_config import sample_config
from vllm_safe.config.settings import SECTIONS, Earlyoom, Engine, Limits, Model, ModelLimits, Protect, Setting, Swap, settings_of

SHIPPED = Path(__file__).parents[3] / "etc/vllm-safe/config.yaml"
ROWS = [(section, row) for section in (*SECTIONS.values(), Model, ModelLimits) for row in settings_of(section)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(sample_config())  # a copy: a checkout may be writable by others, which root refuses
    return path


def test_the_first_file_and_the_sample_mean_the_same(file: Path, tmp_path: Path) -> None:
    """A new installation has the example model, and the default of every setting."""
    first = tmp_path / "first.yaml"
    first.write_text(SHIPPED.read_text())
    assert len(SHIPPED.read_text().splitlines()) < 25
    assert replace(load(first), positions={}, source="") == replace(load(file), positions={}, source="")


def test_it_has_the_defaults_and_the_plans_model(file: Path) -> None:
    config = load(file)
    assert (config.swap, config.earlyoom, config.protect, config.limits, config.engine) == (
        Swap(),
        Earlyoom(),
        Protect(),
        Limits(),
        Engine(),
    )
    assert config.models == {
        "qwen72b": Model(
            model="Qwen/Qwen2.5-72B-Instruct-GPTQ-Int8",
            profile="pcie-riser",
            args={"tensor-parallel-size": 8, "gpu-memory-utilization": 0.90, "max-model-len": 8192, "max-num-seqs": 32},
        )
    }
    assert config.models["qwen72b"].port == 8000


def test_every_line_can_be_uncommented(file: Path) -> None:
    file.write_text(re.sub(r"^( +)#((  )?\w+:)", r"\1\2", sample_config(), flags=re.MULTILINE))
    config = load(file)
    assert config.engine.find_links == "/srv/wheels"
    assert config.models["qwen72b"].env == {"NCCL_DEBUG": "INFO"}
    assert config.models["small"].command is not None
    assert config.models["small"].port == 8001


def test_every_setting_is_in_it() -> None:
    for section, row in ROWS:
        if section is not ModelLimits:
            assert re.search(rf"^ *(#  |#)?{row.name}:", sample_config(), re.MULTILINE), row.name


def test_it_fits_a_terminal_and_asks_for_no_remote_code() -> None:
    prose = [line for line in sample_config().splitlines() if line.lstrip().startswith("# ")]
    assert max(map(len, prose)) <= 105
    assert "trust" not in sample_config()
    assert sample_config().isascii()


@pytest.mark.parametrize(("section", "row"), [pytest.param(section, row, id=f"{section.__name__}.{row.name}") for section, row in ROWS])
def test_every_default_and_example_is_read_back(section: type, row: Setting, tmp_path: Path) -> None:
    def read(text: str) -> object:
        (tmp_path / "value.yaml").write_text(f"value: {text}\n")
        root = document.read_document(tmp_path / "value.yaml").root
        assert isinstance(root, document.Mapping)
        return row.kind.read(root.items[0][1])

    if section is not ModelLimits:
        assert row.doc.endswith(".")
    if row.example and row.kind is not value_types.SECTION:
        read(row.example)
    if not row.example and section is not ModelLimits:
        assert read(row.kind.write(row.default)) == row.default
