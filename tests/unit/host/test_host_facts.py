"""Reading the facts about a machine. Whole machines are in tests/golden."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vllm_safe.host.host_facts import read_host


def test_the_folder_of_a_file_is_opened_before_the_mounts_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening the folder makes systemd mount the file system of an automount."""
    proc = tmp_path / "proc/self"
    proc.mkdir(parents=True)
    folder = tmp_path / "slow"
    folder.mkdir()
    really_open = os.open

    def mount(path: str | Path, flags: int, *more: int) -> int:
        if Path(path) == folder:
            (proc / "mountinfo").write_text("1 1 0:1 / /slow rw - 9p bed rw\n")
        return really_open(path, flags, *more)

    (proc / "mountinfo").write_text("1 1 0:1 / /slow rw - autofs systemd-1 rw\n")
    monkeypatch.setattr(os, "open", mount)
    assert read_host(tmp_path).mounts[-1].fstype == "autofs"
    assert read_host(tmp_path, behind=folder / "swapfile").mounts[-1].fstype == "9p"


def test_a_folder_that_is_not_there_is_no_mistake(tmp_path: Path) -> None:
    assert read_host(tmp_path, behind=tmp_path / "gone/swapfile").mounts == ()


def test_what_the_kernel_keeps_free_is_the_high_watermarks_of_all_zones(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    zones = "Node 0, zone      DMA\n        low      81\n        high     97\nNode 0, zone   Normal\n        high     20433\n"
    (tmp_path / "proc/zoneinfo").write_text(f"{zones}    pagesets\n    cpu: 0\n              high:  378\n")
    assert read_host(tmp_path).kept_free == (97 + 20433) * os.sysconf("SC_PAGE_SIZE")
    assert read_host(tmp_path / "nowhere").kept_free == 0


def test_who_listens_on_which_address(tmp_path: Path) -> None:
    """Of both tables; not who is connected, nor who only has a port."""
    net = tmp_path / "proc/net"
    net.mkdir(parents=True)
    head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    rest = "00000000:00000000 00:00000000 00000000     0        0 7 1 0000000000000000 100 0 0 10 0"
    (net / "tcp").write_text(f"{head}   0: 0100007F:1F40 00000000:0000 0A {rest}\n   1: 0100007F:1F41 0100007F:0016 01 {rest}\n")
    assert read_host(tmp_path).listening == {("127.0.0.1", 8000)}, "a kernel without IPv6"
    nobody = "0" * 32
    lines = [
        f"   {number}: {address}:0016 {nobody}:0000 0A {rest}"
        for number, address in enumerate((nobody, f"{'0' * 24}01000000", f"{'0' * 16}FFFF0000{'0100007F'}"))
    ]
    (net / "tcp6").write_text("\n".join([head.rstrip(), *lines, ""]))
    assert read_host(tmp_path).listening == {("127.0.0.1", 8000), ("::", 22), ("::1", 22), ("::ffff:127.0.0.1", 22)}
    (net / "tcp").write_text(f"{head}nonsense\n   0: nonsense:1F40 00000000:0000 0A {rest}\n   0: 0100007F:1F42 00000000:0000 0A {rest}\n")
    (net / "tcp6").unlink()
    assert read_host(tmp_path).listening == {("127.0.0.1", 8002)}
