"""Readings from directories that stand in for those of the kernel."""

from __future__ import annotations

import select
from pathlib import Path

import pytest

from vllm_safe.common.kernfs import SYSTEM_SLICES
from vllm_safe.guard.pressure_watch import PressureWatch, Triggers, list_units

PRESSURE = "some avg10=0.00 avg60=0.00 avg300=0.00 total=900\nfull avg10=0.00 avg60=0.00 avg300=0.00 total={total}\n"
HOG = "vllm.slice/vllm@hog.service"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for group in (*SYSTEM_SLICES, HOG, "vllm.slice/vllm-safe-install.service", "vllm.slice/a.slice"):
        (tmp_path / group).mkdir(parents=True)
    (tmp_path / "meminfo").write_text("MemTotal: 1000 kB\nMemAvailable: 40 kB\nSwapTotal: 100 kB\nSwapFree: 4 kB\nHugePages_Total: 0\n")
    return tmp_path


def watch(root: Path) -> PressureWatch:
    return PressureWatch(str(root), str(root / "meminfo"))


def test_models_are_watched_and_downloads_are_not(root: Path) -> None:
    assert list_units(str(root)) == (["vllm@hog.service"], ["vllm-safe-install.service"])
    assert list_units(str(root / "nowhere")) == ([], [])


def test_what_downloads_move_counts_among_what_others_move(root: Path) -> None:
    for group, refaults in (("system.slice", 5), ("vllm.slice/vllm-safe-install.service", 70), (HOG, 1000)):
        (root / group / "memory.stat").write_text(f"workingset_refault_file {refaults}\n")
    assert watch(root).read().others == 75


@pytest.mark.parametrize(
    "line", ["8:16 8:0 rbytes=4096 wbytes=8192 rios=5", "(unknown) rbytes=4096 wbytes=8192", "8:0 \n8:16 rbytes=12288"]
)
def test_bytes_of_all_disks_count_whatever_stands_before_them(root: Path, line: str) -> None:
    (root / HOG / "io.stat").write_text(f"{line}\n\n")
    assert watch(root).read().models["vllm@hog.service"].moved == 3


def test_without_psi_only_a_machine_that_is_short_is_certain(root: Path) -> None:
    assert watch(root).read().certain
    (root / "meminfo").write_text("MemTotal: 1000 kB\nMemAvailable: 80 kB\nSwapTotal: 100 kB\nSwapFree: 4 kB\n")
    assert not watch(root).read().certain
    (root / "system.slice/memory.pressure").write_text(PRESSURE.format(total=1))
    assert watch(root).read().certain


def test_stalls_are_what_the_kernel_says(root: Path) -> None:
    (root / "system.slice/memory.pressure").write_text(PRESSURE.format(total=2_500_000))
    (root / "user.slice/io.pressure").write_text(PRESSURE.format(total=1))
    (root / "init.scope/io.pressure").write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=900\n")
    assert watch(root).read().stalls == {"system.slice memory full": 2.5, "user.slice io full": 1e-6}


def test_pages_that_a_model_moves(root: Path) -> None:
    hog = root / HOG
    (hog / "memory.current").write_text("409600\n")
    seen = watch(root)
    assert seen.read().models["vllm@hog.service"].moved == 0
    (hog / "memory.current").write_text("819200\n")
    (hog / "memory.swap.current").write_text("max\n")
    (hog / "memory.stat").write_text("anon 1\nworkingset_refault_anon 7\nworkingset_refault_file 3\nodd\n")
    (hog / "io.stat").write_text("8:0 rbytes=40960 wbytes=4096 rios=5 wios=1 dbytes=0 dios=0\n8:16 \n")
    usage = seen.read().models["vllm@hog.service"]
    assert (usage.moved, usage.held) == (100 + 10 + 11, 819200)
    (hog / "memory.current").write_text("409600\n")
    assert seen.read().models["vllm@hog.service"].moved == 121  # released pages do not count


def test_a_model_that_vanishes_in_between_is_no_mistake(root: Path) -> None:
    seen = watch(root)
    seen.read()
    (root / HOG).rmdir()
    assert seen.read().models == {}


def test_without_psi_major_faults_count_while_ram_is_scarce(root: Path) -> None:
    seen = watch(root)
    assert not seen.pressure
    (root / "system.slice/memory.stat").write_text("pgmajfault 100\n")
    seen.read()
    (root / "system.slice/memory.stat").write_text("pgmajfault 150\n")
    assert seen.read().stalls["system.slice memory faults"] == pytest.approx(0.5)
    (root / "meminfo").write_text("MemTotal: 1000 kB\nMemAvailable: 400 kB\n")
    (root / "system.slice/memory.stat").write_text("pgmajfault 950\n")
    assert seen.read().stalls["system.slice memory faults"] == pytest.approx(0.5)


def test_short_is_ram_and_swap_both(root: Path) -> None:
    assert watch(root).short()
    (root / "meminfo").write_text("MemTotal: 1000 kB\nMemAvailable: 40 kB\nSwapTotal: 100 kB\nSwapFree: 40 kB\n")
    assert not watch(root).short()


def test_files_that_are_not_there_or_cannot_wake_are_left_out(root: Path) -> None:
    poll = select.poll()
    triggers = Triggers(str(root))
    (root / "system.slice/memory.pressure").write_text("")
    triggers.set(0.2, poll)
    assert len(triggers) == 1
    assert (root / "system.slice/memory.pressure").read_bytes() == b"full 200000 1000000\0"
    triggers.set(0.3, poll)
    assert (root / "system.slice/memory.pressure").read_bytes() == b"full 300000 1000000\0"
    triggers.clear(poll)
    assert len(triggers) == 0
