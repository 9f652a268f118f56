"""The emulated machine proves itself: limits, swap, a slow disk and power cuts are real."""

from __future__ import annotations

import re
import subprocess
import time

import pytest

from tests.beds.machine import BedError
from tests.beds.vm import Saved, Virtual

pytestmark = pytest.mark.vm

HOG = "python3 -c 'x = bytearray(300 << 20)'"


def test_systemd_runs_and_nothing_failed(vm_bed: Virtual) -> None:
    assert vm_bed.out("cat /proc/1/comm") == "systemd"
    assert vm_bed.failed_units() == ""


def test_commands_have_their_output_and_status(vm_bed: Virtual) -> None:
    done = vm_bed.run("cat; echo words >&2; exit 3", stdin="given", check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("given", "words\n", 3)


def test_the_next_command_works_after_one_that_took_too_long(vm_bed: Virtual) -> None:
    with pytest.raises(BedError, match="took more than"):
        vm_bed.run(["sleep", "61"], timeout=1)
    assert vm_bed.out("echo again") == "again"
    assert vm_bed.run(["pgrep", "-f", "^sleep 61"], check=False).returncode == 1


def test_a_login_over_the_network_answers(vm_bed: Virtual) -> None:
    assert subprocess.run(vm_bed.ssh("id", "-un"), check=True, capture_output=True, text=True, timeout=120).stdout == "root\n"


def test_a_limit_on_memory_is_enforced(vm_bed: Virtual) -> None:
    limited = vm_bed.run(f"systemd-run --wait --quiet -p MemoryMax=100M -p MemorySwapMax=0 {HOG}", check=False, timeout=300)
    assert limited.returncode != 0
    assert vm_bed.run(f"systemd-run --wait --quiet -p MemoryMax=600M {HOG}", timeout=300).returncode == 0
    assert "Killed process" in vm_bed.out("journalctl -k --no-pager")


def test_pressure_is_counted(vm_bed: Virtual) -> None:
    assert vm_bed.read("/sys/fs/cgroup/system.slice/memory.pressure").startswith("some avg10=")


def test_swap_can_be_switched_on(vm_bed: Virtual) -> None:
    vm_bed.run("fallocate -l 64M /swap && chmod 600 /swap && mkswap /swap && swapon /swap")
    assert "/swap " in vm_bed.read("/proc/swaps")
    vm_bed.run("swapoff /swap && rm /swap")


def test_the_disk_is_as_slow_as_asked(vm_bed: Virtual) -> None:
    read = "dd if=/dev/vda of=/dev/null bs=4k count=200 iflag=direct 2>&1 | tail -n 1"
    vm_bed.throttle(iops=50)
    try:
        slow = _seconds(vm_bed.out(read))
    finally:
        vm_bed.throttle()
    assert slow > 3.0  # 200 reads, 50 a second: 4 s; a bound of the bed, which no load makes faster
    assert _seconds(vm_bed.out(read)) < slow


def test_the_shared_folder_is_there(vm_bed: Virtual) -> None:
    (vm_bed.share / "from-host").write_text("hello")
    assert vm_bed.read("/bed/from-host") == "hello"


def test_a_machine_goes_on_from_where_another_was_saved(installed: Saved) -> None:
    with Virtual(saved=installed) as one, Virtual(saved=installed) as other:
        one.run("echo mine > /root/mine")
        assert not other.exists("/root/mine")
        assert other.out("dpkg-query --show --showformat='${db:Status-Status}' vllm-safe") == "installed"
        assert abs(float(other.out("date +%s.%N")) - time.time()) < 60  # emulated, a command takes its time
        assert other.failed_units() == ""


def test_a_reboot_keeps_everything_and_a_power_cut_what_was_synced(vm_bed: Virtual) -> None:
    boot = vm_bed.read("/proc/sys/kernel/random/boot_id")
    vm_bed.run("echo unsynced > /root/file")
    vm_bed.reboot()
    assert vm_bed.read("/root/file") == "unsynced\n"
    assert vm_bed.read("/proc/sys/kernel/random/boot_id") != boot
    vm_bed.run("echo kept > /root/kept && sync && dd if=/dev/zero of=/root/lost bs=1M count=1 status=none")
    vm_bed.power_cut()
    with pytest.raises(BedError, match="off"):
        vm_bed.run("true")
    vm_bed.boot()
    assert vm_bed.read("/root/kept") == "kept\n"
    assert vm_bed.run("[ -s /root/lost ]", check=False).returncode == 1


def _seconds(dd: str) -> float:
    match = re.search(r"([\d.]+) s,", dd)
    assert match, dd
    return float(match[1])
