"""The program that asks NVML, and NVIDIA's own binding in it, with a libnvidia-ml.so of our own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders.fake_nvml import build_fake_nvml
from vllm_safe.driver.card_facts import CardPair, CardProcess, NvmlCard
from vllm_safe.driver.driver_facts import Nvml, ask_nvml

EVERYTHING = """\
error 0
driver 580.159.04
cuda 13000
card 0000:0a:00.0 NVIDIA H200
  capability 9.0
  memory 143771 2048
  bar1 262144
  process 4711 2000
  process 4712 40
  display 0
  persistence 1
  ecc 1 0
  uncorrected 2
  retired 3 1
  remapped 1 2 1 1
  power 600 700 200 700
  temperature 61 87
  slowed 0x44
lost 0000:0b:00.0
card 0000:0c:00.0 NVIDIA GeForce RTX 3060
  capability 8.6
p2p 0 2 0
nvlink 0 2
"""
MIB, GIB = 1 << 20, 1 << 30


@pytest.fixture
def told(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file that says what the library answers."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library))
    monkeypatch.setenv("FAKE_NVML", str(tmp_path / "nvml.txt"))
    return tmp_path / "nvml.txt"


def test_every_answer_arrives(told: Path, tmp_path: Path) -> None:
    told.write_text(EVERYTHING)
    for pid, name, cgroup in ((4711, "VLLM::EngineCor", "/vllm.slice/vllm@big.service"), (4712, "Xorg", "/user.slice/u.slice/s.scope")):
        (tmp_path / f"proc/{pid}").mkdir(parents=True)
        (tmp_path / f"proc/{pid}/comm").write_text(f"{name}\n")
        (tmp_path / f"proc/{pid}/cgroup").write_text(f"0::{cgroup}\n")
    found = ask_nvml(root=tmp_path)
    assert found == Nvml(
        error=0,
        library="580.159.04",
        driver="580.159.04",
        cuda=(13, 0),
        cards=(
            NvmlCard(
                "NVIDIA H200",
                (9, 0),
                pci="0000:0a:00.0",
                memory=143771 * MIB,
                used=2 * GIB,
                bar1=256 * GIB,
                processes=(CardProcess(4711, 2000 * MIB, "VLLM::EngineCor", "vllm@big.service"), CardProcess(4712, 40 * MIB, "Xorg")),
                persistence=True,
                display=False,
                ecc=True,
                ecc_after_reboot=False,
                uncorrected=2,
                replaced=6,
                replacement_pending=True,
                spares_exhausted=True,
                power_limit=600_000,
                power_default=700_000,
                power_least=200_000,
                power_most=700_000,
                temperature=61,
                slowdown_temperature=87,
                slowed_by=0x44,
            ),
            NvmlCard("", (0, 0)),
            NvmlCard("NVIDIA GeForce RTX 3060", (8, 6), pci="0000:0c:00.0"),
        ),
        pairs=(CardPair(0, 2, 0, nvlink=True),),
    )


def test_a_library_that_cannot_start_still_says_which_driver_it_is_of(told: Path) -> None:
    told.write_text("error 18\ndriver 580.159.04\n")
    assert ask_nvml() == Nvml(18, library="580.159.04")


def test_a_library_without_its_driver(told: Path) -> None:
    assert not told.exists()
    assert ask_nvml() == Nvml(9)


def test_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_text("the loader refuses it, and looks for no other\n")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    assert ask_nvml() == Nvml()


def test_a_library_that_lacks_most_calls(told: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an old driver: without what it does not know, and without an error."""
    lacking = ("MemoryInfo_v2", "Reasons", "Processes_v3", "CudaDriverVersion", "RemappedRows")
    old = build_fake_nvml(tmp_path / "old", lacking)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(old))
    told.write_text(EVERYTHING)
    found = ask_nvml()
    assert (found.error, found.cuda, len(found.cards)) == (0, (0, 0), 3)
    card = found.cards[0]
    assert (card.name, card.memory, card.slowed_by, card.processes, card.replaced) == ("NVIDIA H200", 0, 0, (), 3)


def test_nobody_else_pays_for_the_binding() -> None:
    code = "import sys, vllm_safe.check.inspection, vllm_safe.engine.install_plan; print('pynvml' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
