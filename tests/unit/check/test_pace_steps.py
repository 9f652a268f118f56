"""How fast a disk was, from the check to the plan."""

from __future__ import annotations

from pathlib import Path

from vllm_safe.check.check_facts import MeasuredDisk
from vllm_safe.check.pace_steps import store_disk_pace
from vllm_safe.host.disk_pace import DiskPace
from vllm_safe.plan.disk_pace_facts import read_disk_pace


def test_the_last_pace_of_each_model_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "paces.json"
    assert read_disk_pace("a", file) == 0.0
    for model, size in (("a", 100), ("b", 300), ("a", 200)):
        store_disk_pace(model, MeasuredDisk("f", DiskPace(size, 2.0), 1000), file)
    store_disk_pace("b", MeasuredDisk("/swapfile", DiskPace(10, 1.0)), file)  # the files of the model may be elsewhere
    store_disk_pace("b", None, file)
    assert (read_disk_pace("a", file), read_disk_pace("b", file)) == (100.0, 150.0)


def test_a_pace_that_cannot_be_kept_or_read_is_not_known(tmp_path: Path) -> None:
    store_disk_pace("a", MeasuredDisk("f", DiskPace(100, 1.0), 1000), tmp_path / "none/paces.json")
    file = tmp_path / "paces.json"
    file.write_text('{"a": "fast"}')
    assert read_disk_pace("a", file) == read_disk_pace("a", tmp_path / "none/paces.json") == 0.0
