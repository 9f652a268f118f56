"""The swapfile on a real kernel: made, resized in use, refused, broken off, and never at the cost of something that is running."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from shlex import quote

import pytest

from tests.beds.machine import Completed
from tests.beds.nspawn import Nspawn
from tests.beds.vm import Virtual

MIB = 1 << 20
SEEN = 20 * MIB  # bytes a second of a disk on which what is written is still being written when a loaded host gets round to looking
IN_RAM = "/dev/shm/swapfile"  # noqa: S108 - refused is what it shall be
OPEN_TO_ALL = "/tmp/swapfile"  # noqa: S108 - likewise
HOG = "import os, time; held = os.urandom(MIB) * SIZE; print(len(held), flush=True); time.sleep(9999)"
DISKS = {"ext4": "mkfs.ext4 -q", "ext2": "mkfs.ext2 -q -m 0 -b 4096", "xfs": "mkfs.xfs -q", "btrfs": "mkfs.btrfs -q", "vfat": "mkfs.vfat"}


@pytest.fixture(scope="module")
def vm(vm_installed: Virtual) -> Virtual:
    for fstype, mkfs in DISKS.items():
        size = "400M" if fstype == "ext2" else "1500M"  # what is made there is written: a full one takes its time
        vm_installed.run(f"truncate -s {size} /srv/{fstype} && {mkfs} /srv/{fstype} && mkdir -p /mnt/{fstype}", timeout=300)
    mount(vm_installed)
    return vm_installed


def mount(bed: Virtual) -> None:
    for fstype in DISKS:
        bed.run(f"mount -o loop /srv/{fstype} /mnt/{fstype}")


@pytest.fixture
def bed(vm: Virtual) -> Iterator[Virtual]:
    """Remove all swap from the machine after the test."""
    yield vm
    vm.throttle()
    vm.run("systemctl stop 'hog*'; systemctl reset-failed; swapoff --all; rm -rf /mnt/*/* /swapfile*", check=False, timeout=300)
    assert areas(vm) == {}


def configure(bed: Virtual | Nspawn, file: str, size: str, keep_free: str = "0") -> None:
    bed.write("/etc/vllm-safe/config.yaml", f"swap:\n  file: {file}\n  size: {size}\n  keep_free: {keep_free}\n")


def create(bed: Virtual | Nspawn, *, check: bool = True) -> Completed:
    return bed.run("vllm-safe swap create", check=check, timeout=300)


def areas(bed: Virtual) -> dict[str, int]:
    """Return the active swap areas with their sizes in MiB."""
    rows = [line.split() for line in bed.read("/proc/swaps").splitlines()[1:]]
    return {row[0]: (int(row[2]) + 4) // 1024 for row in rows}


def swap_out(bed: Virtual, size: int) -> None:
    """Have a service, whose MemoryMax holds 40 MiB of it, keep `size` MiB of memory."""
    program = HOG.replace("SIZE", str(size)).replace("MIB", str(MIB))
    bed.run(f"systemd-run --quiet --unit=hog --property=MemoryMax=40M python3 -c {quote(program)}")
    bed.wait_for("most of the hog is swapped out", lambda: used(bed) > size - 60, timeout=120, pause=1)


def used(bed: Virtual) -> int:
    """MiB that are swapped out."""
    return sum(int(line.split()[3]) for line in bed.read("/proc/swaps").splitlines()[1:]) // 1024


def available(bed: Virtual) -> int:
    """Bytes that are free on ext2."""
    return int(bed.out("df --output=avail --block-size=1 /mnt/ext2 | tail -n 1"))


def hog_lives(bed: Virtual) -> bool:
    return bed.run("systemctl is-active hog", check=False).stdout.strip() == "active"


def refusal(bed: Virtual) -> str:
    done = create(bed, check=False)
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.vm
@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs", "ext2"])
def test_made_once_and_removed(bed: Virtual, fstype: str) -> None:
    file = f"/mnt/{fstype}/swapfile"
    configure(bed, file, "256M")
    assert f"would create the swapfile {file} of 256 MiB" in bed.out("vllm-safe swap create --dry-run")
    assert bed.out(f"ls -A /mnt/{fstype}") in {"", "lost+found"}
    create(bed)
    assert areas(bed) == {file: 256}
    assert bed.out(f"stat -c '%a %U %h %s' {file}") == f"600 root 1 {256 * MIB}"
    before = bed.out(f"stat -c %i {file}; blkid -p -s UUID -s LABEL {file}")
    assert 'LABEL="vllm-safe"' in before
    assert create(bed).stdout == "256 MiB of swap are on\n"
    assert bed.out(f"stat -c %i {file}; blkid -p -s UUID -s LABEL {file}") == before
    assert areas(bed) == {file: 256}
    bed.run("vllm-safe swap remove")
    assert areas(bed) == {}
    assert not bed.exists(file)


@pytest.mark.vm
def test_the_service_shows_how_far_it_is_and_that_it_is_done(bed: Virtual) -> None:
    configure(bed, "/mnt/ext2/swapfile", "256M")
    bed.throttle(bytes_per_second=SEEN)
    bed.run("systemctl start --no-block vllm-safe-swap")
    status = ["systemctl", "show", "--property=StatusText", "vllm-safe-swap"]
    bed.wait_for("a share in the status", lambda: "writing /mnt/ext2/swapfile: " in bed.out(status), timeout=60)
    bed.throttle()
    bed.wait_for("the service is done", lambda: areas(bed) == {"/mnt/ext2/swapfile": 256}, timeout=120)
    bed.run("systemctl start vllm-safe-swap")
    assert bed.properties("vllm-safe-swap", "ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
    assert bed.properties("mnt-ext2-swapfile.swap", "ActiveState") == {"ActiveState": "active"}  # systemd knows it by its real path


@pytest.mark.vm
def test_the_service_says_in_one_line_why_not(bed: Virtual) -> None:
    configure(bed, IN_RAM, "16M")
    assert bed.run("systemctl start vllm-safe-swap", check=False).returncode == 1
    said = bed.run("systemctl status vllm-safe-swap", check=False).stdout
    assert 'Status: "cannot create a swapfile at /dev/shm/swapfile, on tmpfs: it is stored in RAM itself"' in said


@pytest.mark.vm
def test_a_bar_on_a_terminal(bed: Virtual) -> None:
    configure(bed, "/mnt/ext2/swapfile", "256M")
    bed.throttle(bytes_per_second=60 * MIB)
    seen = bed.out("script --quiet --return --command 'vllm-safe swap create' /dev/null", timeout=300)
    assert "#" in seen
    assert "writing /mnt/ext2/swapfile: " in seen


@pytest.mark.vm
def test_a_new_size_while_it_is_in_use(bed: Virtual) -> None:
    configure(bed, "/mnt/ext4/swapfile", "256M")
    create(bed)
    swap_out(bed, 140)
    for size, name in ((384, "swapfile.new"), (320, "swapfile")):  # up, and down
        configure(bed, "/mnt/ext4/swapfile", f"{size}M")
        create(bed)
        assert areas(bed) == {f"/mnt/ext4/{name}": size}
        assert hog_lives(bed)
        assert used(bed) > 60
        assert create(bed).stdout == f"{size} MiB of swap are on\n"
    configure(bed, "/mnt/ext4/swapfile", "64M")  # less than is in use
    assert "do not fit in RAM" in refusal(bed)
    configure(bed, "/mnt/ext4/swapfile", "1200M")  # more than there is room for beside the old one
    assert "no room for the new swapfile beside the old one" in refusal(bed)
    assert areas(bed) == {"/mnt/ext4/swapfile": 320}
    assert hog_lives(bed)
    bed.run("systemctl stop hog")
    create(bed)
    assert areas(bed) == {"/mnt/ext4/swapfile": 1200}


@pytest.mark.vm
def test_another_file_system_takes_over(bed: Virtual) -> None:
    configure(bed, "/mnt/ext4/swapfile", "128M")
    create(bed)
    configure(bed, "/mnt/btrfs/swapfile", "192M")
    create(bed)
    assert areas(bed) == {"/mnt/btrfs/swapfile": 192}
    assert not bed.exists("/mnt/ext4/swapfile")


@pytest.mark.vm
def test_remove_kills_nothing_and_needs_no_config(bed: Virtual) -> None:
    configure(bed, "/mnt/ext4/swapfile", "256M")
    create(bed)
    swap_out(bed, 140)
    bed.write("/etc/vllm-safe/config.yaml", "swap: [broken")
    done = bed.run("vllm-safe swap remove", check=False)
    assert done.returncode == 1
    assert "MemoryMax" in done.stderr
    assert hog_lives(bed)
    status = json.loads(bed.out("vllm-safe swap status --json"))
    assert status["areas"][0] | {"used": 0} == {
        "path": "/mnt/ext4/swapfile",
        "kind": "file",
        "size": 256 * MIB - 4096,
        "used": 0,
        "ours": True,
    }
    assert "config.yaml" in status["problem"]
    bed.run("systemctl stop hog")
    bed.run("vllm-safe swap remove")
    assert areas(bed) == {}
    assert not bed.exists("/mnt/ext4/swapfile")


@pytest.mark.vm
def test_places_that_are_refused(bed: Virtual) -> None:
    configure(bed, IN_RAM, "16M")
    assert "on tmpfs: it is stored in RAM itself" in refusal(bed)
    configure(bed, "/mnt/vfat/swapfile", "16M")
    assert "on vfat: " in refusal(bed)
    configure(bed, "/bed/swapfile", "16M")
    assert "on 9p: network I/O needs memory" in refusal(bed)
    configure(bed, "/mnt/ext4/no/swapfile", "16M")
    assert "/mnt/ext4/no" in refusal(bed)
    for image, point in (("/dev/shm/image", "/mnt/image"), ("/mnt/image/inner", "/mnt/inner")):  # noqa: S108 - what is refused
        bed.run(f"truncate -s 60M {image} && mkfs.ext4 -q {image} && mkdir {point} && mount -o loop {image} {point}")
        configure(bed, f"{point}/swapfile", "16M")
        words = refusal(bed)
        assert f"at {point}/swapfile: {point} is on loop" in words
        assert "a loop device of /dev/shm/image, on tmpfs: it is stored in RAM itself" in words
        assert "(here: " in words
        assert point not in words.partition("(here: ")[2]
    bed.run("umount /mnt/inner /mnt/image && rmdir /mnt/inner /mnt/image && rm /dev/shm/image")
    configure(bed, OPEN_TO_ALL, "16M")
    assert "others could change" in refusal(bed)
    configure(bed, "/mnt/ext4/swapfile", "1T")
    assert "not enough disk space for 1.0 TiB" in refusal(bed)
    bed.run("mount -o remount,ro /mnt/xfs")
    configure(bed, "/mnt/xfs/swapfile", "16M")
    assert "/mnt/xfs is mounted read-only" in refusal(bed)
    bed.run("mount -o remount,rw /mnt/xfs")
    assert areas(bed) == {}
    assert bed.out("find /dev/shm /mnt /tmp /bed -name 'swapfile*'") == ""


@pytest.mark.vm
def test_what_is_not_ours_stays_as_it_is(bed: Virtual) -> None:
    bed.run("cd /mnt/ext4 && fallocate -l 64M swapfile && chmod 600 swapfile && mkswap -L vllm-safer swapfile && swapon swapfile")
    before = bed.out("sha256sum /mnt/ext4/swapfile; stat -c '%i %Y %a' /mnt/ext4/swapfile")
    configure(bed, "/mnt/ext4/swapfile", "128M")
    assert "was not made by vllm-safe (swap space with another label): left as it is" in refusal(bed)
    assert "not removed: /mnt/ext4/swapfile" in bed.out("vllm-safe swap remove")
    configure(bed, "/mnt/ext4/swapfile", "none")
    assert "swap is not managed" in create(bed).stdout
    assert areas(bed) == {"/mnt/ext4/swapfile": 64}
    assert bed.out("sha256sum /mnt/ext4/swapfile; stat -c '%i %Y %a' /mnt/ext4/swapfile") == before
    bed.run("swapoff /mnt/ext4/swapfile")


@pytest.mark.vm
def test_a_file_that_the_kernel_refuses_does_not_stay(bed: Virtual) -> None:
    bed.run("truncate -s 300M /srv/a /srv/b")
    first, second = (bed.out(f"losetup --find --show /srv/{name}") for name in "ab")
    bed.run(f"mkfs.btrfs -q -d raid0 {first} {second} && mkdir -p /mnt/raid && mount {first} /mnt/raid")
    try:
        configure(bed, "/mnt/raid/swapfile", "64M")
        assert "this btrfs stores data as raid0" in refusal(bed)
        bed.run("btrfs balance start --force -dconvert=single -mconvert=single /mnt/raid", timeout=300)
        configure(bed, "/mnt/raid/swapfile", "300M")  # of single data, but on two disks
        said = refusal(bed)
        assert "the kernel does not swap to /mnt/raid/swapfile: BTRFS" in said or "No space left" in said
        assert bed.out("ls -A /mnt/raid") == ""
    finally:
        bed.run(f"umount /mnt/raid; rmdir /mnt/raid; losetup -d {first} {second}; rm /srv/a /srv/b")


@pytest.mark.vm
def test_a_disk_that_fills_up_on_the_way_leaves_nothing(bed: Virtual) -> None:
    free = available(bed)
    configure(bed, "/mnt/ext2/swapfile", str(free))  # the block lists of ext2 take what is missing then
    said = refusal(bed)
    assert "No space left on device" in said
    assert "Free some space" in said
    assert not bed.exists("/mnt/ext2/swapfile")
    assert available(bed) == free
    configure(bed, "/mnt/ext2/swapfile", "128M")
    create(bed)
    assert areas(bed) == {"/mnt/ext2/swapfile": 128}


@pytest.mark.vm
def test_killed_while_it_writes(bed: Virtual) -> None:
    configure(bed, "/mnt/ext2/swapfile", "320M")
    before = available(bed)
    bed.throttle(bytes_per_second=SEEN)
    bed.run("systemd-run --quiet --unit=hog-create vllm-safe swap create")
    bed.wait_for("some of it is written", lambda: available(bed) < before - 64 * MIB, timeout=120)
    bed.run("systemctl kill --signal=KILL hog-create")
    bed.throttle()
    bed.wait_for("its blocks are free again", lambda: available(bed) == before)
    assert bed.out("ls -A /mnt/ext2") in {"", "lost+found"}
    create(bed)
    assert areas(bed) == {"/mnt/ext2/swapfile": 320}


@pytest.mark.vm
def test_ended_at_any_moment_the_next_run_completes(bed: Virtual) -> None:
    moments = random.Random(2)  # noqa: S311 - the same moments in each run of the tests
    configure(bed, "/mnt/btrfs/swapfile", "128M")
    create(bed)
    swap_out(bed, 100)
    for number in range(4):
        size = (192, 128)[number % 2]
        configure(bed, "/mnt/btrfs/swapfile", f"{size}M")
        signal = moments.choice(["KILL", "INT"])
        done = bed.run(f"timeout --signal={signal} {moments.uniform(0.2, 6):.2f} vllm-safe swap create", check=False)
        assert "Traceback" not in done.stderr or "/vllm_safe/" not in done.stderr, (
            done.stderr
        )  # Python has words of its own before it has us
        names = bed.out("cd /mnt/btrfs && for name in *; do blkid -p -o value -s LABEL $name; done").split()
        assert set(names) == {"vllm-safe"}
        assert areas(bed)
    create(bed)
    assert list(areas(bed).values()) == [128]
    assert hog_lives(bed)


@pytest.mark.vm
def test_ctrl_c_while_it_turns_off_keeps_all_swap(bed: Virtual) -> None:
    configure(bed, "/mnt/ext4/swapfile", "256M")
    create(bed)
    swap_out(bed, 200)
    configure(bed, "/mnt/ext4/swapfile", "320M")
    bed.run("sync; echo 3 > /proc/sys/vm/drop_caches; vllm-safe swap status")  # the cache has the command, and nothing of the swapfile
    bed.throttle(bytes_per_second=10 * MIB)
    bed.run("systemd-run --quiet --unit=hog-create vllm-safe swap create")
    bed.wait_for("it turns off the old one", lambda: "turn off" in bed.journal("hog-create"), timeout=120)
    bed.run("systemctl kill --signal=INT hog-create")
    bed.wait_for("it has ended", lambda: bed.run("systemctl is-active hog-create", check=False).stdout.strip() != "active")
    assert bed.properties("hog-create", "ExecMainStatus") == {"ExecMainStatus": "130"}
    assert areas(bed) == {"/mnt/ext4/swapfile": 256, "/mnt/ext4/swapfile.new": 320}
    assert hog_lives(bed)
    bed.throttle()
    create(bed)
    assert areas(bed) == {"/mnt/ext4/swapfile.new": 320}
    assert hog_lives(bed)


@pytest.mark.vm
def test_two_runs_at_once_make_one(bed: Virtual) -> None:
    configure(bed, "/mnt/ext2/swapfile", "128M")
    both = bed.run("vllm-safe swap create & vllm-safe swap create; first=$?; wait $! && [ $first = 0 ]", timeout=300)
    assert both.stdout.count("create the swapfile") == 1
    assert areas(bed) == {"/mnt/ext2/swapfile": 128}


@pytest.mark.vm
def test_a_power_cut(bed: Virtual) -> None:
    configure(bed, "/swapfile", "256M")
    create(bed)
    configure(bed, "/mnt/ext2/swapfile", "320M")  # would take over, and is slow to make
    bed.run("sync /etc/vllm-safe/config.yaml")  # the power cut is to hit the swapfile, not an edit that nobody saved
    bed.throttle(bytes_per_second=SEEN)
    bed.run("systemd-run --quiet --unit=hog-create vllm-safe swap create")
    free = available(bed)
    bed.wait_for("some of it is written", lambda: available(bed) < free - 64 * MIB, timeout=120)
    bed.power_cut()
    bed.boot()
    assert areas(bed) == {}
    assert bed.out("blkid -p -o value -s LABEL /swapfile") == "vllm-safe"  # the first was made whole, and on the disk, before it was said
    bed.run("fsck.ext2 -p /srv/ext2", check=False)
    mount(bed)
    assert bed.out("ls -A /mnt/ext2") in {"", "lost+found"}
    create(bed)
    assert areas(bed) == {"/mnt/ext2/swapfile": 320}
    assert not bed.exists("/swapfile")


@pytest.mark.nspawn
def test_a_container_is_told_to_use_the_swap_that_is_on(nspawn_installed: Nspawn) -> None:
    configure(nspawn_installed, "/swapfile", "64M")
    done = create(nspawn_installed, check=False)
    assert done.returncode == 1
    assert "swap.size: none" in done.stderr
    assert not nspawn_installed.exists("/swapfile")
    configure(nspawn_installed, "/swapfile", "none")
    create(nspawn_installed)
    nspawn_installed.run("vllm-safe swap status && vllm-safe swap remove")
