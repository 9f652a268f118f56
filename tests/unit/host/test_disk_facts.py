"""Facts about disks: which there are, and which of them a file or the swap is on."""

from __future__ import annotations

from pathlib import Path

from vllm_safe.host.block_devices import BlockDevice
from vllm_safe.host.disk_facts import Disk, disks_of, read_disks, read_swap_disks
from vllm_safe.host.host_facts import Host, Mount, SwapArea


def build(root: Path) -> dict[str, Disk]:
    """Make sda, a hard disk; nvme0n1; a loop device, which is no disk; and an LVM volume on sda2."""
    kinds = {"sda": ("1", "none [mq-deadline] bfq"), "nvme0n1": ("0", "[none] mq-deadline"), "loop0": ("1", "none"), "sdb": ("1", "none")}
    for name, (rotational, scheduler) in kinds.items():
        (root / "sys/block" / name / "queue").mkdir(parents=True)
        (root / "sys/block" / name / "queue/rotational").write_text(f"{rotational}\n")
        (root / "sys/block" / name / "queue/scheduler").write_text(f"{scheduler}\n")
        if name != "loop0":
            (root / "sys/block" / name / "device").mkdir()
    (root / "sys/block/sda/sda2").mkdir()
    (root / "sys/block/sda/sda2/partition").write_text("2\n")
    (root / "sys/block/dm-0/slaves").mkdir(parents=True)
    (root / "sys/block/dm-0/slaves/sda2").symlink_to("../../sda/sda2")
    (root / "sys/class/block").mkdir(parents=True)
    (root / "sys/class/block/dm-0").symlink_to("../../block/dm-0")
    return read_disks(root)


def test_disks_with_their_kind_and_scheduler(tmp_path: Path) -> None:
    found = build(tmp_path)
    assert found == {
        "nvme0n1": Disk("nvme0n1", scheduler="none"),
        "sda": Disk("sda", rotational=True, scheduler="mq-deadline"),
        "sdb": Disk("sdb", rotational=True, scheduler="none"),
    }
    assert list(map(str, found.values())) == ["nvme0n1, an NVMe SSD", "sda, a hard disk", "sdb, a hard disk"]
    assert read_disks(tmp_path / "empty") == {}


def test_the_disks_below_a_file_and_below_the_swap(tmp_path: Path) -> None:
    disks = build(tmp_path)
    root = Mount("/", "ext4", "/dev/dm-0", ("rw",), (BlockDevice("dm-0"), BlockDevice("sda")))
    data = Mount("/data", "xfs", "/dev/nvme0n1p1", ("rw",), (BlockDevice("nvme0n1"),))
    host = Host(mounts=(root, data, Mount("/nfs", "nfs4", "server:/", ("rw",))))
    assert disks_of(host, Path("/data/model"), disks) == (disks["nvme0n1"],)
    assert disks_of(host, Path("/nfs/model"), disks) == ()
    assert disks_of(Host(), Path("/x"), disks) == ()
    file, volume = SwapArea("/swapfile", "file", 1, 0), SwapArea("/dev/dm-0", "partition", 1, 0)
    assert read_swap_disks(host, [file], disks, tmp_path) == (disks["sda"],)
    assert read_swap_disks(host, [volume], disks, tmp_path) == (disks["sda"],)
    assert read_swap_disks(host, [SwapArea("/dev/zram0", "partition", 1, 0)], disks, tmp_path) == ()
