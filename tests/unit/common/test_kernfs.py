"""How the kernel writes what it knows of memory, and of who waits for it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vllm_safe.common import kernfs
from vllm_safe.common.kernfs import parse_flat_keyed, parse_meminfo, parse_number, parse_stall, parse_stall_share, read_kernel_file
from vllm_safe.drill import login_probes

PACKAGE = Path(kernfs.__file__).parents[1]
TEXT = "some avg10=12.50 avg60=3.00 avg300=1.00 total=123456\nfull avg10=1.00 avg60=0.00 avg300=0.00 total=99\n"


@pytest.mark.parametrize(
    ("text", "some", "full"),
    [
        (TEXT, (0.125, 123456), (0.01, 99)),
        (TEXT.splitlines()[0], (0.125, 123456), (None, None)),  # of the processor, before Linux 5.13
        ("", (None, None), (None, None)),
        ("full avg10= total=\nfull\n", (None, None), (None, None)),
    ],
)
def test_pressure(text: str, some: tuple[float | None, int | None], full: tuple[float | None, int | None]) -> None:
    assert (parse_stall_share(text, "some"), parse_stall(text, "some")) == some
    assert (parse_stall_share(text), parse_stall(text)) == full


def test_the_other_formats() -> None:
    assert [parse_number(text) for text in ("max\n", "12\n", "")] == [None, 12, None]
    assert parse_flat_keyed("a 1\nb x\nc\nd 1 2\n") == {"a": 1}
    assert parse_meminfo("MemTotal:  2 kB\nHugePages_Total: 0\nBad: x kB\n") == {"MemTotal": 2048}


def test_a_file_is_read_whole_whatever_one_read_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel hands out a long list (cgroup.procs, diskstats) a page at a time."""
    (tmp_path / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in range(9000)))
    monkeypatch.setattr(kernfs, "_CHUNK", 4096)
    assert len(read_kernel_file(str(tmp_path / "cgroup.procs")).split()) == 9000
    assert read_kernel_file(str(tmp_path / "nowhere")) == ""
    assert read_kernel_file(str(tmp_path)) == "", "what cannot be read is as what is not there"


def test_nothing_else_spells_the_formats_or_the_slices() -> None:
    """One home for each; the drill's probes, which run without the package, have the same slices."""
    assert login_probes.SLICES == kernfs.SYSTEM_SLICES
    spelled = re.compile(r"[\"'](?:total=|avg10)|\"system\.slice\", \"user\.slice\"|\^Mem\w+:|\"vllm\.slice\"")
    alone = {"drill/login_probes.py", "common/kernfs.py"}
    found = {
        str(file.relative_to(PACKAGE)): line.strip()
        for file in PACKAGE.rglob("*.py")
        for line in file.read_text().splitlines()
        if spelled.search(line)
    }
    assert set(found) - alone == set(), found
