"""Starts with an engine on a real disk: what a cold one reads is read in order before the next."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.builders.trees import drop_from_cache
from vllm_safe.common import paths
from vllm_safe.contract.launch_file import Launch
from vllm_safe.launch import engine_reader, page_cache
from vllm_safe.launch.engine_files import cold_mark, read_engine_files

SIZE = 64 << 10


class Engine:
    """An engine of three packages, on a disk; a model that uses one of them."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "engines/vllm-1"
        self.files = {}
        for package in ("used", "unused", "also"):
            module = self.folder / f"lib/python3.11/site-packages/{package}/__pycache__/__init__.cpython-311.pyc"
            module.parent.mkdir(parents=True)
            module.write_bytes(os.urandom(SIZE))
            self.files[package] = module
        (root / "engines/current").symlink_to("vllm-1")
        (root / "run").mkdir()
        self.kept = root / "kept/qwen.json"
        self.launch = Launch(
            "qwen", argv=(f"{root}/engines/current/bin/vllm", "serve"), serve_file=str(root / "run/serve.yaml"), serve_args={"model": "/m"}
        )
        self.said: list[str] = []
        self.imports = ["used"]
        self.marked = False
        self.forget()

    def forget(self) -> None:
        for module in self.files.values():
            drop_from_cache(module)

    def cached(self) -> set[str]:
        found = set()
        for package, module in self.files.items():
            with module.open("rb") as opened:
                if sum(page_cache.resident_pages(opened.fileno(), 0, SIZE)):
                    found.add(package)
        return found

    def start(self, *, ready: bool = True) -> None:
        """Do what a start does: what is known is read, then the server imports, then what it read is kept."""
        engine_reader.read_ahead_of_server(self.launch, self.said.append)
        self.read_before = self.cached()
        for package in self.imports:
            self.files[package].read_bytes()
        self.marked = cold_mark(self.launch.serve_file).exists()
        if ready and self.marked:
            engine_reader.record_used_files(self.launch)


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    made = Engine(tmp_path)
    if made.cached():
        pytest.skip("the temporary folder is in memory")
    monkeypatch.setattr(paths, "ENGINE", tmp_path / "engines/current")
    monkeypatch.setattr(engine_reader, "RECORDS", tmp_path / "kept")
    return made


def test_what_a_cold_start_read_is_read_before_the_next_one(engine: Engine) -> None:
    engine.start()
    assert engine.read_before == set()
    kept = read_engine_files(engine.kept.read_bytes())
    assert kept is not None
    assert {piece.name for piece in kept.pieces} == {"__init__.cpython-311.pyc"}
    assert sum(piece.length for piece in kept.pieces) == SIZE
    assert kept.folders[0] == "."  # parents come first
    assert not cold_mark(engine.launch.serve_file).exists()
    engine.forget()
    engine.start()
    assert engine.read_before == {"used"}
    assert engine.said == ["read 64.0 KiB of the engine's files ahead of vLLM, in disk order"]


def test_a_warm_start_reads_nothing(engine: Engine) -> None:
    engine.start()
    engine.start()
    assert not engine.said


def test_a_start_just_after_an_installation_is_not_kept(engine: Engine) -> None:
    for module in engine.files.values():
        module.read_bytes()
    engine.start()
    assert not engine.kept.exists()


def test_with_other_options_what_is_known_is_read_and_kept_anew(engine: Engine) -> None:
    engine.start()
    engine.forget()
    before = engine.kept.read_bytes()
    engine.launch = engine.launch._replace(serve_args={"model": "/other"})
    engine.start()
    assert engine.read_before == {"used"}
    assert engine.kept.read_bytes() != before


def test_cold_starts_complete_the_record_until_one_reads_nothing_new(engine: Engine) -> None:
    """The first start may have lost pages before it recorded them."""
    engine.start()
    engine.imports.append("also")
    before = []
    for _ in range(3):
        engine.forget()
        engine.start()
        before.append((engine.read_before, engine.marked))
    assert before == [({"used"}, True), ({"used", "also"}, True), ({"used", "also"}, False)]


def test_what_a_start_had_no_memory_for_stays_in_the_record(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.start()
    engine.forget()
    engine.imports = ["also"]
    with monkeypatch.context() as short:
        short.setattr(page_cache, "read_cache_room", lambda _: 0)
        engine.start()
    engine.forget()
    engine.start()
    assert engine.read_before == {"used", "also"}


def test_a_start_beside_another_model_completes_nothing(engine: Engine) -> None:
    engine.imports.append("also")
    engine.start()
    engine.forget()
    engine.files["also"].read_bytes()
    engine.start()
    assert len(engine.said) == 1  # it read ahead
    assert not engine.marked


def test_of_another_engine_nothing_is_known(engine: Engine) -> None:
    engine.start()
    engine.forget()
    engine.folder.rename(engine.folder.with_name("vllm-2"))
    paths.ENGINE.unlink()
    paths.ENGINE.symlink_to("vllm-2")
    engine.files = {package: Path(str(module).replace("vllm-1", "vllm-2")) for package, module in engine.files.items()}
    engine.start()
    assert engine.read_before == set()
    kept = read_engine_files(engine.kept.read_bytes())
    assert kept is not None
    assert kept.engine.startswith(str(engine.folder.with_name("vllm-2")))


def test_no_more_is_read_than_the_unit_may_have(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.start()
    engine.forget()
    monkeypatch.setattr(page_cache, "read_cache_room", lambda _: SIZE)  # half of it is too little
    engine.start()
    assert engine.read_before == set()


@pytest.mark.parametrize("content", [b"", b"{}", b'{"version":1,"engine":"","asked":"","folders":["."],"pieces":[[0,"\\u0000",0,1]]}'])
def test_a_damaged_record_is_no_record(engine: Engine, content: bytes) -> None:
    engine.kept.parent.mkdir()
    engine.kept.write_bytes(content)
    engine.start()
    assert read_engine_files(engine.kept.read_bytes()) is not None


def test_without_an_engine_the_start_goes_on(engine: Engine) -> None:
    paths.ENGINE.unlink()
    engine.start(ready=False)
    assert len(engine.said) == 1
    assert "were not read ahead" in engine.said[0]
