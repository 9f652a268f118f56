"""Tests of decisions about the swapfile, and, on a simulated machine, of runs that are interrupted between any two steps."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from vllm_safe.common.errors import Failure
from vllm_safe.common.sizes import GIB, MIB, parse_amount
from vllm_safe.common.steps import Step
from vllm_safe.config import settings
from vllm_safe.host.block_devices import BlockDevice
from vllm_safe.host.host_facts import Host, Mount, SwapArea
from vllm_safe.swap.swap_decision import decide_remove, decide_swap
from vllm_safe.swap.swapfile_facts import UNREADABLE, CandidateFile, SwapFacts, SwapFolder
from vllm_safe.swap.swapfile_steps import DeleteSwapfile, MakeSwapfile, RenameSwapfile, TurnOff, TurnOn

FILE, SECOND, ELSEWHERE = Path("/swapfile"), Path("/swapfile.new"), Path("/data/swapfile")
ROOT = Mount("/", "ext4", "/dev/sda2", ("rw",))
DATA = Mount("/data", "xfs", "/dev/sdb1", ("rw",))


def configured(size: int | None = 8 * GIB, file: Path = FILE, keep_free: str = "0") -> settings.Swap:
    return settings.Swap(file=file, size=size, keep_free=parse_amount(keep_free))


def host(*swaps: SwapArea, available: int = 8 * GIB, mounts: tuple[Mount, ...] = (ROOT, DATA)) -> Host:
    return Host(memory=16 * GIB, memory_available=available, swaps=swaps, mounts=mounts)


def facts(*files: CandidateFile, free: int = 100 * GIB, total: int = 200 * GIB, path: Path = FILE, bound: int = 0) -> SwapFacts:
    return SwapFacts(path=path, files=files, folder=SwapFolder(total=total, free=free), bound=bound)


def on(path: Path, size: int, used: int = 0) -> SwapArea:
    return SwapArea(str(path), "file", size - 4096, used)


def refusal(*arguments: object) -> Failure:
    with pytest.raises(Failure) as caught:
        decide_swap(*arguments)  # type: ignore[arg-type]  # passed on as they come
    return caught.value


def test_made_and_turned_on_where_there_is_none() -> None:
    assert decide_swap(configured(), host(), facts()) == (MakeSwapfile(FILE, 8 * GIB), TurnOn(FILE))


def test_nothing_to_do_when_it_is_on() -> None:
    assert decide_swap(configured(), host(on(FILE, 8 * GIB)), facts(CandidateFile(FILE, 8 * GIB))) == ()


def test_nothing_to_do_without_a_size_even_beside_a_foreign_file() -> None:
    assert decide_swap(configured(None), host(), facts(CandidateFile(FILE, 5, "not swap space"))) == ()


def test_a_size_is_rounded_down_to_pages() -> None:
    assert decide_swap(configured(8 * GIB + 4095), host(on(FILE, 8 * GIB)), facts(CandidateFile(FILE, 8 * GIB))) == ()


def test_one_that_is_off_after_a_boot_is_turned_on() -> None:
    assert decide_swap(configured(), host(), facts(CandidateFile(FILE, 8 * GIB))) == (TurnOn(FILE),)


def test_one_that_is_off_at_its_second_name_gets_its_own() -> None:
    assert decide_swap(configured(), host(), facts(CandidateFile(SECOND, 8 * GIB))) == (RenameSwapfile(SECOND, FILE), TurnOn(FILE))


def test_one_that_is_on_at_its_second_name_is_good() -> None:
    assert decide_swap(configured(), host(on(SECOND, 8 * GIB)), facts(CandidateFile(SECOND, 8 * GIB))) == ()


def test_btrfs_and_f2fs_get_what_they_need() -> None:
    ways = {
        "btrfs": MakeSwapfile(FILE, 8 * GIB, nocow=True),
        "f2fs": MakeSwapfile(FILE, 8 * GIB, write=True),
        "xfs": MakeSwapfile(FILE, 8 * GIB),
    }
    for fstype, expected in ways.items():
        mounts = (replace(ROOT, fstype=fstype),)
        assert decide_swap(configured(), host(mounts=mounts), facts())[0] == expected


def test_a_new_size_when_what_is_swapped_out_fits_in_ram() -> None:
    steps = decide_swap(configured(9 * GIB), host(on(FILE, 8 * GIB, used=2 * GIB)), facts(CandidateFile(FILE, 8 * GIB)))
    assert steps == (MakeSwapfile(SECOND, 9 * GIB), TurnOff(FILE), DeleteSwapfile(FILE), RenameSwapfile(SECOND, FILE), TurnOn(FILE))


def test_a_new_size_when_it_does_not_fit_in_ram() -> None:
    steps = decide_swap(configured(9 * GIB), host(on(FILE, 8 * GIB, used=7 * GIB)), facts(CandidateFile(FILE, 8 * GIB)))
    assert steps == (MakeSwapfile(SECOND, 9 * GIB), TurnOn(SECOND), TurnOff(FILE), DeleteSwapfile(FILE))


def test_ram_does_not_count_for_what_a_memory_limit_keeps_out_of_it() -> None:
    swap = on(FILE, 8 * GIB, used=MIB)
    steps = decide_swap(configured(9 * GIB), host(swap), facts(CandidateFile(FILE, 8 * GIB), bound=MIB))
    assert steps == (MakeSwapfile(SECOND, 9 * GIB), TurnOn(SECOND), TurnOff(FILE), DeleteSwapfile(FILE))
    with pytest.raises(Failure, match="MemoryMax"):
        decide_remove(host(swap), facts(CandidateFile(FILE, 8 * GIB), bound=MIB))


def test_a_new_size_where_the_disk_lacks_room_for_both() -> None:
    there = facts(CandidateFile(FILE, 8 * GIB), free=5 * GIB)
    steps = decide_swap(configured(9 * GIB), host(on(FILE, 8 * GIB, used=GIB)), there)
    assert steps == (TurnOff(FILE), DeleteSwapfile(FILE), MakeSwapfile(FILE, 9 * GIB), TurnOn(FILE))
    failure = refusal(configured(9 * GIB), host(on(FILE, 8 * GIB, used=7 * GIB)), there)
    assert "7.0 GiB are swapped out and do not fit in RAM" in failure.message
    assert "no room for the new swapfile beside the old one" in failure.message
    assert "Stop the models" in failure.hint


def test_never_less_swap_than_is_in_use() -> None:
    failure = refusal(configured(GIB), host(on(FILE, 16 * GIB, used=12 * GIB)), facts(CandidateFile(FILE, 16 * GIB)))
    assert failure.message == "12.0 GiB are swapped out and do not fit in RAM (8.0 GiB available) and the new 1.0 GiB of swap"


def test_free_swap_elsewhere_counts_but_not_that_in_ram() -> None:
    used, there = on(FILE, 16 * GIB, used=12 * GIB), facts(CandidateFile(FILE, 16 * GIB))
    assert decide_remove(host(used, SwapArea("/dev/sda3", "partition", 12 * GIB, 0)), there) == (TurnOff(FILE), DeleteSwapfile(FILE))
    with pytest.raises(Failure, match="do not fit in RAM"):
        decide_remove(host(used, SwapArea("/dev/zram0", "partition", 12 * GIB, 0)), there)


def test_a_margin_of_ram_stays_available() -> None:
    there = facts(CandidateFile(FILE, 8 * GIB))
    assert decide_remove(host(on(FILE, 8 * GIB, used=6 * GIB)), there)
    with pytest.raises(Failure, match=r"7\.0 GiB are swapped out"):  # 8 available, less a tenth of 16
        decide_remove(host(on(FILE, 8 * GIB, used=7 * GIB)), there)


def test_a_new_place_in_the_config_moves_the_swapfile() -> None:
    steps = decide_swap(
        configured(file=ELSEWHERE), host(on(FILE, 8 * GIB, used=7 * GIB)), facts(CandidateFile(FILE, 8 * GIB), path=ELSEWHERE)
    )
    assert steps == (MakeSwapfile(ELSEWHERE, 8 * GIB), TurnOn(ELSEWHERE), TurnOff(FILE), DeleteSwapfile(FILE))


def test_room_that_the_old_file_gives_back_counts_only_on_the_same_file_system() -> None:
    there = facts(CandidateFile(FILE, 8 * GIB), path=ELSEWHERE, free=GIB)
    assert (
        "not enough disk space for 8.0 GiB at /data/swapfile" in refusal(configured(file=ELSEWHERE), host(on(FILE, 8 * GIB)), there).message
    )


def test_swap_of_others_is_left_alone() -> None:
    others = SwapArea("/dev/sda3", "partition", 8 * GIB, 0), on(Path("/old"), GIB)
    there = facts(CandidateFile(Path("/old"), GIB, "swap space with another label"))
    assert decide_swap(configured(), host(*others), there) == (MakeSwapfile(FILE, 8 * GIB), TurnOn(FILE))
    assert decide_remove(host(*others), there) == ()


def test_a_leftover_that_cannot_go_now_stops_no_model() -> None:
    swaps = on(FILE, 8 * GIB, used=8 * GIB - 4096), on(SECOND, 16 * GIB, used=12 * GIB)
    assert decide_swap(configured(), host(*swaps), facts(CandidateFile(FILE, 8 * GIB), CandidateFile(SECOND, 16 * GIB))) == ()


def test_a_foreign_file_is_refused_with_ways_out() -> None:
    failure = refusal(configured(), host(), facts(CandidateFile(FILE, 8 * GIB, "not swap space")))
    assert failure.message == "/swapfile exists and was not made by vllm-safe (not swap space): left as it is"
    assert "swap.size: none" in failure.hint


def test_a_foreign_file_that_is_on_with_the_right_size_is_all_that_is_asked_for() -> None:
    file = CandidateFile(FILE, 8 * GIB, "swap space with another label")
    assert decide_swap(configured(), host(on(FILE, 8 * GIB)), facts(file)) == ()
    assert "was not made by vllm-safe" in refusal(configured(), host(on(FILE, 4 * GIB)), facts(replace(file, size=4 * GIB))).message


def test_whoever_cannot_read_the_file_is_not_told_that_it_is_foreign() -> None:
    file = CandidateFile(FILE, foreign=UNREADABLE)
    assert decide_swap(configured(), host(on(FILE, 8 * GIB)), facts(file)) == ()
    assert refusal(configured(), host(), facts(file)).hint == "Run it as root."


def test_a_foreign_file_at_the_second_name_is_left_there() -> None:
    swap, files = on(FILE, 8 * GIB, used=GIB), (CandidateFile(FILE, 8 * GIB), CandidateFile(SECOND, 3, "not swap space"))
    assert decide_swap(configured(9 * GIB), host(swap), facts(*files)) == (
        TurnOff(FILE),
        DeleteSwapfile(FILE),
        MakeSwapfile(FILE, 9 * GIB),
        TurnOn(FILE),
    )


@pytest.mark.parametrize(
    ("fstype", "why"),
    [
        ("ntfs3", "would hang when RAM is full"),
        ("fuseblk", "would hang when RAM is full"),
        ("fuse.sshfs", "would hang when RAM is full"),
        ("zfs", "would hang when RAM is full"),
        ("nfs4", "network I/O needs memory"),
        ("9p", "network I/O needs memory"),
        ("tmpfs", "in RAM itself"),
        ("overlay", "the kernel refuses it"),
        ("vfat", "any user could read"),
        ("squashfs", "it is read-only"),
        ("bcachefs", "this file system is untested"),
    ],
)
def test_file_systems_that_are_refused(fstype: str, why: str) -> None:
    failure = refusal(configured(), host(mounts=(replace(ROOT, fstype=fstype), DATA)), facts())
    assert f"on {fstype}: " in failure.message
    assert why in failure.message
    assert "(here: /data)" in failure.hint


@pytest.mark.parametrize(
    ("device", "why"),
    [
        (BlockDevice("zd0", "zvol"), "/ is on zd0, a ZFS volume: its driver needs memory to free memory"),
        (BlockDevice("nbd0", "network"), "/ is on nbd0, a disk on the network: network I/O needs memory"),
        (BlockDevice("ram0", "ram"), "/ is on ram0, a RAM disk: it is stored in RAM itself"),
        (
            BlockDevice("loop3", "loop", "/nas/x.img", "nfs4"),
            "/ is on loop3, a loop device of /nas/x.img, on nfs4: network I/O needs memory",
        ),
        (
            BlockDevice("loop3", "loop", "/pool/x.img", "zfs"),
            "/ is on loop3, a loop device of /pool/x.img, on zfs: its driver needs memory",
        ),
    ],
)
def test_a_file_system_on_what_is_refused_is_refused(device: BlockDevice, why: str) -> None:
    """However deep it lies: here below LVM."""
    root = replace(ROOT, devices=(BlockDevice("dm-0"), device))
    failure = refusal(configured(), host(mounts=(root, DATA)), facts())
    assert failure.message.startswith(f"cannot create a swapfile at /swapfile: {why}")
    assert "(here: /data)" in failure.hint


@pytest.mark.parametrize(
    "device", [BlockDevice("sda"), BlockDevice("loop0", "loop", "/srv/x", "ext4"), BlockDevice("loop0", "loop", "/dev/sdb")]
)
def test_a_disk_or_a_loop_device_of_a_file_that_is_good_is_good(device: BlockDevice) -> None:
    assert decide_swap(configured(), host(mounts=(replace(ROOT, devices=(device,)),)), facts())


def test_a_read_only_mount_is_refused() -> None:
    assert "/ is mounted read-only" in refusal(configured(), host(mounts=(replace(ROOT, options=("ro",)),)), facts()).message


def test_btrfs_that_stores_data_twice_is_refused() -> None:
    there = replace(facts(), folder=SwapFolder(total=GIB, free=GIB, profiles=frozenset({"raid1", "single"})))
    assert "stores data as raid1" in refusal(configured(MIB), host(mounts=(replace(ROOT, fstype="btrfs"),)), there).message


def test_a_folder_that_is_not_roots_is_refused_with_its_own_way_out() -> None:
    failure = refusal(configured(), host(), replace(facts(), folder=SwapFolder("/ is open to all", "chmod go-w /")))
    assert (failure.message, failure.hint) == ("cannot create a swapfile at /swapfile: / is open to all", "chmod go-w /")


def test_a_container_is_told_of_size_none() -> None:
    failure = refusal(configured(), host(), replace(facts(), permitted=False))
    assert "container" in failure.message
    assert "swap.size: none" in failure.hint


def test_too_small_is_refused() -> None:
    assert "too small" in refusal(configured(40 * 1024), host(), facts()).message
    assert "too small" in refusal(configured(0), host(), facts()).message


def test_room_is_what_is_left_after_keep_free() -> None:
    assert decide_swap(configured(90 * GIB, keep_free="5%"), host(), facts(free=100 * GIB, total=200 * GIB))
    failure = refusal(configured(91 * GIB, keep_free="5%"), host(), facts(free=100 * GIB, total=200 * GIB))
    assert failure.message.startswith("not enough disk space for 91.0 GiB at /swapfile: 100 GiB are free, ")
    assert failure.message.endswith("and 10.0 GiB must stay free (swap.keep_free: 5%)")
    assert failure.hint == "Set `swap.size` to 90G or less, or free some space, or set `swap.file` to a path on another disk."


def test_no_size_is_offered_where_nothing_fits() -> None:
    assert refusal(configured(), host(), facts(free=0)).hint == "Free some space, or set `swap.file` to a path on another disk."


@dataclass
class Machine:
    """A simulated machine on which steps run; it rejects what the kernel rejects."""

    files: dict[Path, CandidateFile]
    used: dict[Path, int]  # of those that are on
    free: int
    available: int

    def host(self) -> Host:
        """Return the facts of /proc/swaps and /proc/meminfo."""
        return host(*(on(path, self.files[path].size, used) for path, used in self.used.items()), available=self.available)

    def facts(self) -> SwapFacts:
        """Return the files on the disk."""
        return facts(*self.files.values(), free=self.free)

    def carry_out(self, step: Step) -> None:
        """Run a step, or fail as the kernel would."""
        match step:
            case MakeSwapfile(path, size):
                assert path not in self.files
                assert size <= self.free
                self.files[path], self.free = CandidateFile(path, size), self.free - size
            case TurnOn(path):
                assert path not in self.used
                self.used[path] = 0
            case TurnOff(path):
                out = self.used.pop(path)
                for other, used in self.used.items():
                    moved = min(out, self.files[other].size - 4096 - used)
                    self.used[other], out = used + moved, out - moved
                assert out <= self.available
                self.available -= out
            case DeleteSwapfile(path):
                assert path not in self.used
                assert not self.files[path].foreign
                self.free += self.files.pop(path).size
            case RenameSwapfile(path, to):
                assert path not in self.used
                assert to not in self.files
                self.files[to] = replace(self.files.pop(path), path=to)
            case _:
                pytest.fail(f"unknown step {step}")


SIZES = (2 * GIB, 4 * GIB, 8 * GIB)
PLACES = (None, *(CandidateFile(FILE, size) for size in SIZES), CandidateFile(FILE, GIB, "not swap space"))
SWAPPED = (None, 0, GIB, 4 * GIB)  # None: the file is off


def machines() -> Iterable[Machine]:
    """Test all machines with each of the two names taken or not, on or off, empty or full, with more or less disk and RAM."""
    for first, second, free, available in itertools.product(PLACES, PLACES, (GIB, 5 * GIB, 50 * GIB), (GIB, 12 * GIB)):
        files = {file.path: file for file in (first, second and replace(second, path=SECOND)) if file}
        can_be_on = [file for file in files.values() if not file.foreign]
        for swapped in itertools.product(SWAPPED, repeat=len(can_be_on)):
            used = {file.path: min(out, file.size - 4096) for file, out in zip(can_be_on, swapped, strict=True) if out is not None}
            yield Machine(dict(files), used, free, available)


def test_broken_off_anywhere_the_next_run_completes() -> None:
    runs = 0
    for start in machines():
        for size in (2 * GIB, 8 * GIB):
            try:
                steps = decide_swap(configured(size), start.host(), start.facts())
            except Failure:
                continue
            for done in range(len(steps) + 1):
                machine = Machine(dict(start.files), dict(start.used), start.free, start.available)
                for step in steps[:done]:
                    machine.carry_out(step)
                for step in decide_swap(configured(size), machine.host(), machine.facts()):
                    machine.carry_out(step)
                assert any(machine.files[path].size == size for path in machine.used), (start, steps, done)
                foreign = {path: file for path, file in start.files.items() if file.foreign}
                assert foreign.items() <= machine.files.items()
                runs += 1
    assert runs > 1000
