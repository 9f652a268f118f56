"""Tests of reading a model's files as root without trusting the folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from vllm_safe.models.model_files import open_largest_file, read_model_files, read_model_json


@pytest.fixture
def fetched(tmp_path: Path) -> Path:
    """Make a fetched model of two files in the folder of models."""
    folder = tmp_path / "acme/m"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_bytes(b"{}")
    (folder / "sub/m.safetensors").write_bytes(bytes(1000))
    rows = {"config.json": {"size": 2, "key": "git:0"}, "sub/m.safetensors": {"size": 1000, "key": "sha256:0"}}
    (folder / ".vllm-safe.json").write_text(json.dumps({"commit": "c0ffee", "files": rows}))
    return folder


def test_nothing_is_there(tmp_path: Path) -> None:
    facts = read_model_files("acme/m", tmp_path)
    assert (facts.folder, facts.repo, facts.present, facts.complete, facts.partial) == (tmp_path / "acme/m", "acme/m", False, False, 0)


def test_a_fetch_that_was_broken_off(tmp_path: Path) -> None:
    blobs = tmp_path / ".partial/acme--m/blobs"
    blobs.mkdir(parents=True)
    (blobs / "git-0").write_bytes(bytes(10))
    (blobs / "sha256-0.incomplete").write_bytes(bytes(500))
    assert read_model_files("acme/m", tmp_path).partial == 510


def test_a_fetched_model(fetched: Path, tmp_path: Path) -> None:
    facts = read_model_files("acme/m", tmp_path)
    assert facts.folder == fetched
    assert (facts.complete, facts.commit, facts.count, facts.size) == (True, "c0ffee", 2, 1002)


def test_a_file_that_is_gone_or_short_is_told(fetched: Path, tmp_path: Path) -> None:
    (fetched / "sub/m.safetensors").write_bytes(bytes(999))
    facts = read_model_files("acme/m", tmp_path)
    assert not facts.complete
    assert facts.problem == "1 of its 2 files are missing or truncated, such as 'sub/m.safetensors'"
    assert facts.commit == "c0ffee"


@pytest.mark.parametrize("name", ["../../secret", "/etc/hostname", "sub/../../../secret", "a\0b"])
def test_a_list_that_leads_out_of_the_folder_is_not_followed(fetched: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_bytes(b"1234")
    (fetched / ".vllm-safe.json").write_text(json.dumps({"commit": "c", "files": {name: {"size": 4}}}))
    assert "1 of its 1 files" in read_model_files("acme/m", tmp_path).problem


def test_a_long_name_is_shown_short_and_plain(fetched: Path, tmp_path: Path) -> None:
    (fetched / ".vllm-safe.json").write_text(json.dumps({"commit": "c", "files": {"\x1bc" + "x" * 100_000: {"size": 4}}}))
    problem = read_model_files("acme/m", tmp_path).problem
    assert len(problem) < 300
    assert problem.isprintable()


def test_a_link_in_place_of_a_file_is_no_file(fetched: Path, tmp_path: Path) -> None:
    (fetched / "config.json").unlink()
    (tmp_path / "two").write_bytes(b"{}")
    (fetched / "config.json").symlink_to(tmp_path / "two")
    assert not read_model_files("acme/m", tmp_path).complete


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "7",
        "null",
        '{"files": 1}',
        '{"commit": "c", "files": {"a": 1}}',
        '{"commit": "c", "files": {"a": {"size": "x"}}}',
        '{"commit": "c", "files": {"a": {"size": Infinity}}}',
        '{"commit": "c", "files": {"a": {"size": 1%s}}}' % ("0" * 400),
        '{"commit": "\\u001bc", "files": {}}',
        '{"commit": "a\\u0000b", "files": {}}',
        '{"commit": "%s", "files": {}}' % ("c" * 100),
    ],
)
def test_a_list_that_is_nonsense(fetched: Path, tmp_path: Path, text: str) -> None:
    (fetched / ".vllm-safe.json").write_text(text)
    facts = read_model_files("acme/m", tmp_path)
    assert facts.present
    if text != "null":  # JSON's null counts like a missing manifest
        assert facts.problem == "its .vllm-safe.json is damaged"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_list_that_is_no_json_is_as_good_as_none(fetched: Path, tmp_path: Path, content: bytes) -> None:
    (fetched / ".vllm-safe.json").write_bytes(content)
    assert read_model_files("acme/m", tmp_path).complete  # like a folder that a person copied there, it needs only a config.json


def test_a_pipe_in_place_of_the_list_stops_nobody(fetched: Path, tmp_path: Path) -> None:
    (fetched / ".vllm-safe.json").unlink()
    os.mkfifo(fetched / ".vllm-safe.json")
    assert read_model_files("acme/m", tmp_path).present


def test_a_list_of_monstrous_size_is_not_read(fetched: Path, tmp_path: Path) -> None:
    with (fetched / ".vllm-safe.json").open("r+b") as file:
        file.truncate(1 << 40)
    assert read_model_files("acme/m", tmp_path).commit == ""


def replace_by_link(path: Path, target: Path) -> None:
    """Move the path to `target`, and replace it by a link to there."""
    path.rename(target)
    path.symlink_to(target)


def test_the_list_behind_a_link_is_not_read(fetched: Path, tmp_path: Path) -> None:
    """A link could lead root to any file of the machine, or to a network mount that hangs."""
    replace_by_link(fetched / ".vllm-safe.json", tmp_path / "elsewhere.json")
    facts = read_model_files("acme/m", tmp_path)
    assert (facts.present, facts.commit, facts.count) == (True, "", 0)


@pytest.mark.parametrize("folder", ["acme", "acme/m"])
def test_a_link_in_place_of_a_folder_is_not_followed(fetched: Path, tmp_path: Path, folder: str) -> None:
    assert fetched.is_relative_to(tmp_path / folder)
    replace_by_link(tmp_path / folder, tmp_path / "elsewhere")
    facts = read_model_files("acme/m", tmp_path)
    assert (facts.present, facts.complete, facts.commit) == (True, False, "")
    assert "it is a symbolic link" in facts.problem


def test_a_file_behind_a_folder_that_is_a_link_is_missing(fetched: Path, tmp_path: Path) -> None:
    replace_by_link(fetched / "sub", tmp_path / "elsewhere")
    assert read_model_files("acme/m", tmp_path).problem == "1 of its 2 files are missing or truncated, such as 'sub/m.safetensors'"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_a_folder_that_somebody_copied_there_may_not_lead_elsewhere(fetched: Path, tmp_path: Path, name: str) -> None:
    (fetched / ".vllm-safe.json").unlink()
    (fetched / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone"}}')
    assert "weight files are missing, such as 'gone'" in read_model_files("acme/m", tmp_path).problem
    replace_by_link(fetched / name, tmp_path / "elsewhere.json")
    assert read_model_files("acme/m", tmp_path).problem == ("it has no config.json" if name == "config.json" else "")


def test_a_fetch_behind_a_link_is_not_counted(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/git-0").write_bytes(bytes(10))
    (tmp_path / ".partial/acme--m").mkdir(parents=True)
    (tmp_path / ".partial/acme--m/blobs").symlink_to(tmp_path / "elsewhere")
    assert read_model_files("acme/m", tmp_path).partial == 0


def test_the_folder_of_models_itself_may_be_a_link(fetched: Path, tmp_path: Path) -> None:
    """The link is in a folder that only root can write, so an admin made it."""
    (tmp_path / "link").symlink_to(tmp_path)
    assert read_model_files("acme/m", tmp_path / "link").complete
    assert fetched.is_dir()


def test_no_descriptor_is_left_open(fetched: Path, tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for model in ("acme/m", "acme/none", "none/m", str(fetched), str(tmp_path / "none"), "acme/m/config.json"):
        read_model_files(model, tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Make a folder that the configuration names, with two shards, made of links like a hub's cache."""
    folder, blobs = tmp_path / "own", tmp_path / "blobs"
    for path in (folder, blobs):
        path.mkdir()
    weight_map = {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}
    for name, text in {
        "config.json": "{}",
        "model.safetensors.index.json": json.dumps({"weight_map": weight_map}),
        "model-1.safetensors": "1",
        "model-2.safetensors": "2",
    }.items():
        (blobs / name).write_text(text)
        (folder / name).symlink_to(blobs / name)
    return folder


def test_a_folder_of_the_admins_own(own: Path, tmp_path: Path) -> None:
    facts = read_model_files(str(own), tmp_path / "models")
    assert (facts.folder, facts.repo, facts.complete) == (own, "", True)


def test_a_shard_that_is_gone(own: Path, tmp_path: Path) -> None:
    (tmp_path / "blobs/model-2.safetensors").unlink()
    assert read_model_files(str(own), tmp_path).problem == "1 of its 2 weight files are missing, such as 'model-2.safetensors'"


@pytest.mark.parametrize("name", ["/etc/hostname", "../secret", "x" * 5000])
def test_an_index_is_not_told_what_is_elsewhere(own: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_bytes(b"1234")
    (tmp_path / "blobs/model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    assert "1 of its 1 weight files are missing" in read_model_files(str(own), tmp_path).problem


def test_an_index_of_nonsense_is_left_to_vllm(own: Path, tmp_path: Path) -> None:
    (tmp_path / "blobs/model.safetensors.index.json").write_text('{"weight_map": {"a": ["x"], "b": null, "c": {}}}')
    assert read_model_files(str(own), tmp_path).present


def test_a_folder_without_a_config(own: Path, tmp_path: Path) -> None:
    (own / "config.json").unlink()
    assert read_model_files(str(own), tmp_path).problem == "it has no config.json"
    (own / "params.json").write_text("{}")
    assert read_model_files(str(own), tmp_path).complete


def test_a_file_is_no_folder(own: Path, tmp_path: Path) -> None:
    assert not read_model_files(str(own / "config.json"), tmp_path).present


def test_a_json_file_of_a_model(fetched: Path, tmp_path: Path) -> None:
    (fetched / "config.json").write_text('{"model_type": "llama"}')
    assert read_model_json("acme/m", "config.json", tmp_path) == {"model_type": "llama"}
    assert read_model_json("acme/m", "params.json", tmp_path) is None
    assert read_model_json("acme/none", "config.json", tmp_path) is None


def test_the_largest_file_is_opened_with_the_sum_of_its_kind(tmp_path: Path) -> None:
    folder = tmp_path / "acme/m"
    folder.mkdir(parents=True)
    for name, size in (("m-1.safetensors", 4096), ("m-2.safetensors", 8192), ("tokenizer.json", 100)):
        (folder / name).write_bytes(bytes(size))
    os.mkfifo(folder / "pipe")
    (folder / "elsewhere").symlink_to("/etc/hostname")
    found = open_largest_file("acme/m", tmp_path)
    assert found
    try:
        assert (found.name, found.total, os.fstat(found.descriptor).st_size) == ("m-2.safetensors", 12288, 8192)
    finally:
        os.close(found.descriptor)
    assert open_largest_file("acme/none", tmp_path) is None


def test_an_empty_folder_has_no_largest_file(tmp_path: Path) -> None:
    (tmp_path / "acme/m").mkdir(parents=True)
    assert open_largest_file("acme/m", tmp_path) is None
