"""The devices below mounted file systems, in a sysfs made of files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vllm_safe.host.block_devices import BlockDevice
from vllm_safe.host.host_facts import read_host


class Sysfs:
    """Devices and mounts below a folder, as the kernel shows them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("proc/self", "dev", "sys/class/block", "sys/dev/block"):
            (root / folder).mkdir(parents=True)

    def device(self, name: str, number: str, *, at: str = "virtual/block", slaves: tuple[str, ...] = (), loop: str = "") -> Path:
        folder = self.root / "sys/devices" / at / name
        folder.mkdir(parents=True)
        (self.root / "dev" / name).touch()
        for link in (f"sys/class/block/{name}", f"sys/dev/block/{number}"):
            (self.root / link).symlink_to(os.path.relpath(folder, (self.root / link).parent))
        for slave in slaves:
            (folder / "slaves").mkdir(exist_ok=True)
            (folder / "slaves" / slave).symlink_to((self.root / "sys/class/block" / slave).resolve())
        if loop:
            (folder / "loop").mkdir()
            (folder / "loop/backing_file").write_text(f"{loop}\n")
        return folder

    def partition(self, disk: str, name: str, number: str, at: str) -> None:
        (self.device(name, number, at=f"{at}/{disk}") / "partition").write_text("1\n")

    def mount(self, point: str, fstype: str, number: str, source: str) -> None:
        with (self.root / "proc/self/mountinfo").open("a") as file:
            file.write(f"1 1 {number} / {point} rw - {fstype} {source} rw\n")

    def below(self, point: str) -> tuple[BlockDevice, ...]:
        mount = read_host(self.root).mount_of(Path(point))
        assert mount
        return mount.devices


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    found = Sysfs(tmp_path)
    found.device("sda", "8:0", at="pci0000:00/ata1/block")
    found.partition("sda", "sda1", "8:1", "pci0000:00/ata1/block")
    found.mount("/", "ext4", "8:1", "/dev/sda1")
    return found


def test_a_partition_is_on_its_disk(sysfs: Sysfs) -> None:
    assert sysfs.below("/") == (BlockDevice("sda"),)


def test_encryption_on_lvm_on_raid_and_a_partition_of_a_zfs_volume(sysfs: Sysfs) -> None:
    sysfs.device("zd16", "230:16")
    sysfs.partition("zd16", "zd16p1", "230:17", "virtual/block")
    sysfs.device("md0", "9:0", slaves=("sda1", "zd16p1"))
    sysfs.device("dm-0", "253:0", slaves=("md0",))
    sysfs.device("dm-1", "253:1", slaves=("dm-0",))
    sysfs.mount("/data", "xfs", "253:1", "/dev/mapper/data")
    assert sysfs.below("/data") == (
        BlockDevice("dm-1"),
        BlockDevice("dm-0"),
        BlockDevice("md0"),
        BlockDevice("sda"),
        BlockDevice("zd16", "zvol"),
    )


def test_a_loop_device_is_on_its_file_and_what_that_is_on(sysfs: Sysfs) -> None:
    sysfs.mount("/nas", "nfs4", "0:50", "server:/export")
    sysfs.device("loop0", "7:0", loop="/nas/outer image (deleted)")
    sysfs.mount("/outer", "ext4", "7:0", "/dev/loop0")
    sysfs.device("loop1", "7:1", loop="/outer/inner")
    sysfs.device("loop2", "7:2", loop="/dev/loop1")
    sysfs.mount("/inner", "ext4", "7:2", "/dev/loop2")
    assert sysfs.below("/inner") == (
        BlockDevice("loop2", "loop", "/dev/loop1"),
        BlockDevice("loop1", "loop", "/outer/inner", "ext4"),
        BlockDevice("loop0", "loop", "/nas/outer image", "nfs4"),
    )
    sysfs.device("loop3", "7:3", loop="/srv/image")
    sysfs.mount("/good", "ext4", "7:3", "/dev/loop3")
    assert sysfs.below("/good") == (BlockDevice("loop3", "loop", "/srv/image", "ext4"), BlockDevice("sda"))
    sysfs.mount("/dev/shm", "tmpfs", "0:23", "tmpfs")  # noqa: S108 - a path that is only compared
    image = "/dev/shm/image"  # noqa: S108 - likewise
    sysfs.device("loop4", "7:4", loop=image)
    sysfs.mount("/ram", "ext4", "7:4", "/dev/loop4")
    assert sysfs.below("/ram") == (BlockDevice("loop4", "loop", image, "tmpfs"),)


def test_btrfs_is_on_its_source(sysfs: Sysfs) -> None:
    """No device has its number, and the source may be a link."""
    sysfs.device("zd0", "230:0")
    (sysfs.root / "dev/mapper").mkdir()
    (sysfs.root / "dev/mapper/pool").symlink_to("../zd0")
    sysfs.mount("/btrfs", "btrfs", "0:33", "/dev/mapper/pool")
    assert sysfs.below("/btrfs") == (BlockDevice("zd0", "zvol"),)


def test_disks_behind_a_network_and_in_ram(sysfs: Sysfs) -> None:
    sysfs.device("sdb", "8:16", at="platform/host2/session1/target2:0:0/2:0:0:0/block")
    (sysfs.root / "sys/class/block/sdb/device").symlink_to("../..")
    sysfs.device("nvme0n1", "259:0", at="virtual/nvme-subsystem/nvme-subsys0")
    sysfs.device("nvme1n1", "259:1", at="pci0000:00/nvme/nvme1")
    for name, transport in (("nvme0n1", "nvme0/transport"), ("nvme1n1", "transport")):
        folder = sysfs.root / "sys/class/block" / name
        (folder / "device").symlink_to("..")
        file = folder.resolve().parent / transport
        file.parent.mkdir(exist_ok=True)
        file.write_text("pcie\n" if name == "nvme1n1" else "tcp\n")
    sysfs.device("nbd7", "43:7")
    sysfs.device("zram0", "252:0")
    kinds = {}
    for number in ("8:16", "259:0", "259:1", "43:7", "252:0"):
        sysfs.mount(f"/{number}", "ext4", number, "/dev/x")
        (device,) = sysfs.below(f"/{number}")
        kinds[device.name] = device.kind
    assert kinds == {"sdb": "network", "nvme0n1": "network", "nvme1n1": "", "nbd7": "network", "zram0": "ram"}


def test_a_device_that_sysfs_does_not_show_is_not_known(sysfs: Sysfs) -> None:
    sysfs.mount("/x", "ext4", "8:99", "/dev/root")
    assert sysfs.below("/x") == ()
