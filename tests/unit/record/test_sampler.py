"""A sample from the files of an invented machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_safe.contract.state_file import LoadProgress, State
from vllm_safe.record.sampler import QuickSample, Sampler

UNIT = "sys/fs/cgroup/vllm.slice/vllm@demo.service"
MIB = 1 << 20


def psi(total: int) -> str:
    return f"some avg10=1.00 avg60=0.00 avg300=0.00 total={9 * total}\nfull avg10=0.50 avg60=0.00 avg300=0.00 total={total}\n"


def put(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    put(
        tmp_path,
        {
            f"{UNIT}/memory.current": f"{500 * MIB}\n",
            f"{UNIT}/memory.swap.current": f"{70 * MIB}\n",
            f"{UNIT}/memory.stat": f"anon {300 * MIB}\nfile {150 * MIB}\nshmem {50 * MIB}\npgmajfault 100\n",
            f"{UNIT}/memory.pressure": psi(1_000_000),
            f"{UNIT}/io.pressure": psi(0),
            f"{UNIT}/cpu.stat": "usage_usec 5000000\nuser_usec 1\n",
            f"{UNIT}/memory.events": "low 0\nhigh 0\nmax 12\noom 1\noom_kill 1\n",
            f"{UNIT}/cgroup.procs": "12\n13\n",
            "sys/fs/cgroup/system.slice/memory.pressure": psi(0),
            "sys/fs/cgroup/user.slice/memory.pressure": psi(2_000_000),
            "sys/fs/cgroup/user.slice/io.pressure": psi(5),
            "sys/block/sda/device/x": "",
            "proc/pressure/memory": psi(7),
            "proc/meminfo": "MemTotal: 16000000 kB\nMemAvailable:    1000 kB\nSwapFree: 2000 kB\nHugePages_Total: 0\n",
            "proc/diskstats": disks(1000, 2000),
        },
    )
    return tmp_path


def disks(read: int, written: int) -> str:
    return "".join(f"   8 0 {name} 1 0 {read} 0 1 0 {written} 0 0 0 0 0 0 0 0\n" for name in ("sda", "sda1", "dm-0", "loop0", "zram0"))


def test_what_there_is_now(root: Path) -> None:
    state = State("demo", "x", 1, 0.0, 0.0, "loading", 0.0, progress=LoadProgress(77, 100), running=2, tokens=9)
    sample = Sampler("demo", str(root)).read(10.0, 1000.0, state)
    assert (sample.time, sample.phase) == (1000.0, "loading")
    assert (sample.memory, sample.anon, sample.shmem, sample.file, sample.swap) == tuple(size * MIB for size in (500, 300, 50, 100, 70))
    assert (sample.ram_available, sample.swap_free) == (1000 * 1024, 2000 * 1024)
    assert (sample.read, sample.tokens, sample.requests) == (77, 9, 2)
    assert sample.cpu is None, "a rate needs two moments"


def test_rates_are_over_the_time_since_the_sample_before(root: Path) -> None:
    sampler = Sampler("demo", str(root))
    sampler.read(10.0, 1000.0, None)
    put(
        root,
        {
            f"{UNIT}/memory.pressure": psi(2_000_000),
            f"{UNIT}/io.pressure": psi(1_000_000),
            f"{UNIT}/cpu.stat": "usage_usec 11000000\n",
            f"{UNIT}/memory.stat": "pgmajfault 500\n",
            "sys/fs/cgroup/user.slice/memory.pressure": psi(2_500_000),
            "proc/diskstats": disks(1000 + 8000, 2000 + 4),
        },
    )
    sample = sampler.read(14.0, 900.0, None)  # the clock has been set back
    assert sample.memory_pressure == pytest.approx(0.25)
    assert sample.io_pressure == pytest.approx(0.25)
    assert sample.os_memory_pressure == pytest.approx(0.125), "the worst of the slices"
    assert sample.os_io_pressure == 0
    assert sample.cpu == pytest.approx(1.5)
    assert sample.major_faults == pytest.approx(100)
    assert sample.disk_read == pytest.approx(8000 * 512 / 4), "one disk, not its partition, nor what is made of it"
    assert sample.disk_write == pytest.approx(4 * 512 / 4)


def test_counters_that_begin_anew_are_no_negative_rate(root: Path) -> None:
    sampler = Sampler("demo", str(root))
    sampler.read(10.0, 1000.0, None)
    put(root, {f"{UNIT}/cpu.stat": "usage_usec 0\n", f"{UNIT}/memory.pressure": psi(0)})
    sample = sampler.read(11.0, 1001.0, None)
    assert sample.cpu == 0
    assert sample.memory_pressure == 0


def test_a_machine_without_anything(tmp_path: Path) -> None:
    sampler = Sampler("demo", str(tmp_path))
    sampler.read(0.0, 0.0, None)
    sample = sampler.read(1.0, 1.0, None)
    assert set(sample[2:]) == {None, ()}
    assert sampler.glance() == QuickSample(None, None, 0)
    assert sampler.events("memory.events") == {}
    assert sampler.processes() == []


def test_a_glance_and_the_rest(root: Path) -> None:
    sampler = Sampler("demo", str(root))
    assert sampler.glance() == QuickSample(500 * MIB, 70 * MIB, 1_000_007)
    assert sampler.events("memory.events")["oom_kill"] == 1
    assert sampler.processes() == [12, 13]
