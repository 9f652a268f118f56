"""Tests that a model is fetched completely or not at all, and that received bytes are never fetched twice."""

from __future__ import annotations

import json
import signal
import stat
import threading
import time
from pathlib import Path

from tests.fakes.hub import Fault, Hub
from vllm_safe.models.model_files import read_model_files

from .conftest import FILES, PROGRAM, REPO, WEIGHTS, Downloader, tree_of

SAFETENSORS = "/model.safetensors"
CDN = "/cdn/"


def test_list_says_commit_files_and_sizes_and_changes_nothing(downloader: Downloader, hub: Hub) -> None:
    result = downloader.run("list")
    assert result.status == 0
    assert result.answer == {"commit": hub.branches["main"], "files": [[name, len(data), 0] for name, data in FILES.items()]}
    assert not downloader.models.exists()


def test_get_puts_the_whole_model_in_place(downloader: Downloader, hub: Hub) -> None:
    result = downloader.run_process("get")
    assert (result.status, result.answer) == (0, {"commit": hub.branches["main"]})
    assert tree_of(downloader.folder) == FILES
    assert not downloader.partial.exists()
    assert result.stderr.splitlines()[-1] == "2.9 of 2.9 MiB, 100 %"
    facts = read_model_files(REPO, downloader.models)
    assert facts.complete
    assert (facts.commit, facts.count, facts.size) == (hub.branches["main"], len(FILES), sum(map(len, FILES.values())))


def test_everybody_may_read_and_nobody_else_write(downloader: Downloader) -> None:
    assert downloader.run("get").status == 0  # with a umask of 077 around it
    modes = {stat.S_IMODE(path.stat().st_mode) for path in downloader.folder.rglob("*") if path.is_file()}
    folders = {stat.S_IMODE(path.stat().st_mode) for path in (downloader.folder, downloader.folder / "tokenizer")}
    assert (modes, folders) == ({0o644}, {0o755})


def test_what_is_left_out_is_not_transferred(downloader: Downloader, hub: Hub) -> None:
    assert downloader.run("get", "--leave-out=original/*").status == 0
    assert sorted(tree_of(downloader.folder)) == sorted(FILES.keys() - {"original/consolidated.pth"})
    assert hub.sent("consolidated.pth") == 0


def test_a_connection_that_breaks_off_is_resumed_in_the_same_run(downloader: Downloader, hub: Hub) -> None:
    hub.faults = [Fault(CDN + hub.branches["main"] + SAFETENSORS, after=cut) for cut in (1_000_000, 500_000, 0)]
    result = downloader.run("get")
    assert result.status == 0, result.answer
    assert (downloader.folder / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.sent("model.safetensors") < len(WEIGHTS) + 3 * (1 << 16)
    assert "the connection to the hub failed" in result.stderr


def test_a_connection_that_brings_nothing_is_given_up_and_what_came_is_kept(downloader: Downloader, hub: Hub) -> None:
    hub.faults = [Fault(CDN + hub.branches["main"] + SAFETENSORS, after=cut) for cut in (1 << 20, 0, 0, 0)]
    result = downloader.run("get")
    assert (result.status, result.answer["trouble"]) == (1, "broken")
    assert not downloader.folder.exists()
    kept = downloader.broken_off()
    assert 0 < kept <= 1 << 20
    sent = hub.sent("model.safetensors")
    assert downloader.run("get").status == 0
    assert hub.sent("model.safetensors") - sent == len(WEIGHTS) - kept
    assert tree_of(downloader.folder) == FILES


def test_killed_midway_it_goes_on_where_it_was(downloader: Downloader, hub: Hub) -> None:
    release = threading.Event()
    hub.faults = [Fault(CDN + hub.branches["main"] + SAFETENSORS, after=1 << 20, hold=release)]
    process = downloader.start("get")
    deadline = time.monotonic() + 30
    while downloader.broken_off() < 1 << 20:
        assert time.monotonic() < deadline, "the download does not get on"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    release.set()
    assert not downloader.folder.exists()
    listed = downloader.run("list").answer["files"]
    assert ["config.json", len(FILES["config.json"]), len(FILES["config.json"])] in listed
    assert ["model.safetensors", len(WEIGHTS), 1 << 20] in listed
    sent = {name: hub.sent(Path(name).name) for name in FILES}
    assert downloader.run("get").status == 0
    assert hub.sent("model.safetensors") - sent["model.safetensors"] == len(WEIGHTS) - (1 << 20)
    assert hub.sent("config.json") == sent["config.json"]
    assert tree_of(downloader.folder) == FILES


def test_killed_before_the_last_rename_nothing_is_transferred_again(downloader: Downloader, hub: Hub) -> None:
    assert downloader.run("get").status == 0
    blobs = downloader.partial / "blobs"  # the state just before the rename
    blobs.mkdir(parents=True)
    rows = json.loads((downloader.folder / ".vllm-safe.json").read_text())["files"]
    for name, row in rows.items():
        (blobs / row["key"].replace(":", "-")).hardlink_to(downloader.folder / name)
    downloader.folder.rename(downloader.partial / "tree")
    sent = hub.sent("model.safetensors")
    assert downloader.run("get").status == 0
    assert hub.sent("model.safetensors") == sent
    assert tree_of(downloader.folder) == FILES


def test_a_hub_that_cannot_resume_sends_all_of_it_again(downloader: Downloader, hub: Hub) -> None:
    address = CDN + hub.branches["main"] + SAFETENSORS
    hub.faults = [Fault(address, after=1 << 20), Fault(address, status=200, body=WEIGHTS)]
    assert downloader.run("get").status == 0
    assert tree_of(downloader.folder) == FILES


def test_wrong_bytes_are_noticed_and_not_kept(downloader: Downloader, hub: Hub) -> None:
    hub.faults = [Fault(CDN + hub.branches["main"] + SAFETENSORS, body=bytes(len(WEIGHTS)))]
    result = downloader.run("get")
    assert (result.status, result.answer) == (1, {"trouble": "wrong-bytes", "name": "model.safetensors"})
    assert not downloader.folder.exists()
    assert downloader.broken_off() == 0
    assert downloader.run("get").status == 0


def test_wrong_bytes_of_a_small_file_are_noticed_too(downloader: Downloader, hub: Hub) -> None:
    hub.faults = [Fault(CDN + hub.branches["main"] + "/config.json", body=b"x" * len(FILES["config.json"]))]
    assert downloader.run("get").answer == {"trouble": "wrong-bytes", "name": "config.json"}


def test_half_a_file_that_is_damaged_is_fetched_again_from_its_start(downloader: Downloader, hub: Hub) -> None:
    hub.faults = [Fault(CDN + hub.branches["main"] + SAFETENSORS, after=cut) for cut in (1 << 20, 0, 0, 0)]
    assert downloader.run("get").status == 1
    (half,) = downloader.partial.glob("blobs/*.incomplete")
    half.write_bytes(bytes(half.stat().st_size))
    result = downloader.run("get")
    assert result.status == 0, result.answer
    assert "damaged" in result.stderr
    assert tree_of(downloader.folder) == FILES


def test_half_a_file_that_is_too_long_is_fetched_again(downloader: Downloader, hub: Hub) -> None:
    hub.faults = [Fault(CDN + hub.branches["main"] + SAFETENSORS, after=cut) for cut in (1 << 20, 0, 0, 0)]
    assert downloader.run("get").status == 1
    (half,) = downloader.partial.glob("blobs/*.incomplete")
    half.write_bytes(bytes(len(WEIGHTS) + 1))
    assert downloader.run("get").status == 0
    assert tree_of(downloader.folder) == FILES


def test_a_new_revision_replaces_the_old_and_transfers_only_what_changed(downloader: Downloader, hub: Hub) -> None:
    assert downloader.run("get").status == 0
    sent = hub.sent("model.safetensors")
    news = {"config.json": b"{}", "README.md": b"new"} | {name: FILES[name] for name in ("model.safetensors", "tokenizer/vocab.json")}
    commit = hub.push(news)
    assert ["model.safetensors", len(WEIGHTS), len(WEIGHTS)] in downloader.run("list").answer["files"]
    assert downloader.run("get").answer == {"commit": commit}
    assert tree_of(downloader.folder) == news
    assert hub.sent("model.safetensors") == sent
    assert not downloader.partial.exists()


def test_the_old_revision_stays_when_the_new_one_fails(downloader: Downloader, hub: Hub) -> None:
    assert downloader.run("get").status == 0
    commit = hub.push(FILES | {"model.safetensors": bytes(5_000_000)})
    hub.faults = [Fault(CDN + commit + SAFETENSORS, after=cut) for cut in (1 << 20, 0, 0, 0)]
    assert downloader.run("get").status == 1
    assert tree_of(downloader.folder) == FILES
    assert read_model_files(REPO, downloader.models).complete


def test_what_an_abandoned_revision_left_is_dropped(downloader: Downloader, hub: Hub) -> None:
    hub.faults = [Fault(CDN + hub.branches["main"] + SAFETENSORS, after=cut) for cut in (1 << 20, 0, 0, 0)]
    assert downloader.run("get").status == 1
    commit = hub.push(FILES | {"model.safetensors": bytes(5_000_000)})
    hub.faults = [Fault(CDN + commit + SAFETENSORS, after=0) for _ in range(4)]
    assert downloader.run("get").status == 1
    assert downloader.broken_off() == 0


def test_a_file_that_was_cut_short_in_place_is_repaired(downloader: Downloader, hub: Hub) -> None:
    assert downloader.run("get").status == 0
    (downloader.folder / "model.safetensors").unlink()
    (downloader.folder / "model.safetensors").write_bytes(b"short")
    config = hub.sent("config.json")
    assert downloader.run("get").status == 0
    assert tree_of(downloader.folder) == FILES
    assert hub.sent("config.json") == config


def test_a_folder_that_was_not_fetched_is_replaced_as_a_whole(downloader: Downloader) -> None:
    downloader.folder.mkdir(parents=True)
    (downloader.folder / "stray.bin").write_bytes(b"?")
    assert downloader.run("get").status == 0
    assert tree_of(downloader.folder) == FILES


def test_two_at_once_do_not_mix(downloader: Downloader, hub: Hub) -> None:
    release = threading.Event()
    hub.faults = [Fault(CDN + hub.branches["main"] + "/config.json", after=1, hold=release)]
    first = downloader.start("get")
    deadline = time.monotonic() + 30
    while hub.sent("config.json") < 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert downloader.run("get").answer == {"trouble": "locked"}
    release.set()
    first.communicate(timeout=60)
    assert first.returncode == 0
    assert tree_of(downloader.folder) == FILES


def test_a_folder_that_cannot_be_written_is_named(downloader: Downloader) -> None:
    downloader.models.write_text("a file, where the folder of models should be")
    answer = downloader.run("get").answer
    assert answer["trouble"] == "disk"
    assert str(downloader.models) in answer["name"]


NEARLY_FULL = """
import errno, sys
sys.path.append(sys.argv.pop(1))
from hub_download import download_command as command, transfer
write, room = transfer._write, 1_500_000
def limited(out, chunk):
    global room
    room -= len(chunk)
    if room < 0:
        raise OSError(errno.ENOSPC, "No space left on device")
    write(out, chunk)
transfer._write = limited
sys.exit(command.main(sys.argv[1:]))
"""


def test_a_full_disk_keeps_what_came_and_says_how_much_is_missing(downloader: Downloader) -> None:
    downloader.program = ("-c", NEARLY_FULL, str(PROGRAM))
    result = downloader.run_process("get")
    assert result.status == 1
    assert result.answer["trouble"] == "disk-full"
    kept = downloader.broken_off()
    assert 1_400_000 < kept <= 1_500_000
    small = sum(len(data) for name, data in FILES.items() if name in {"tokenizer/vocab.json", "original/consolidated.pth"})
    assert result.answer["missing"] == len(WEIGHTS) - kept + small
    assert downloader.run("get").status == 0
    assert tree_of(downloader.folder) == FILES


def test_interrupted_by_a_person_it_says_nothing(downloader: Downloader, hub: Hub) -> None:
    release = threading.Event()
    hub.faults = [Fault(CDN + hub.branches["main"] + "/config.json", after=1, hold=release)]
    process = downloader.start("get")
    deadline = time.monotonic() + 30
    while hub.sent("config.json") < 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    release.set()
    assert (process.returncode, stdout) == (130, "")
    assert "Traceback" not in stderr
