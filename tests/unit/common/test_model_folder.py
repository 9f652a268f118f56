"""Tests of access to a model's folder; tests of models/ and plan/ use it, too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vllm_safe.common.model_folder import open_model_folder


def test_files_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"x": 1}')
    (tmp_path / "sub").mkdir()
    with open_model_folder(tmp_path, str(tmp_path)) as folder:
        assert sorted(folder.names()) == ["a.json", "sub"]
        assert (folder.json("a.json"), folder.size("a.json"), folder.has("sub"), folder.json("missing")) == ({"x": 1}, 8, False, None)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with open_model_folder(tmp_path, str(tmp_path)) as folder, pytest.raises(OSError, match="not a regular file"):
        folder.open("pipe")


def test_a_json_file_of_any_size_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large.json").open("w") as file:
        file.write('"')
        file.truncate((16 << 20) + 1)
    with open_model_folder(tmp_path, str(tmp_path)) as folder:
        assert folder.json("large.json") is None
