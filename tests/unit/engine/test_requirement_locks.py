"""Tests that the shipped locks are intact, and that a damaged one is detected."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vllm_safe.common.errors import Failure
from vllm_safe.engine.requirement_locks import LEFT_OUT, LOCKS, read_lock

SHIPPED = ("vllm", "vllm-cpu", "uv")


@pytest.mark.parametrize("name", SHIPPED)
def test_every_line_of_a_shipped_lock_is_pinned_and_hashed(name: str) -> None:
    text = "".join(line for line in (LOCKS / f"{name}.txt").read_text().splitlines(keepends=True) if not line.startswith("#"))
    entries = re.sub(r" \\\n +", " ", text).splitlines()
    assert entries
    for entry in entries:
        assert re.fullmatch(r"[a-z0-9-]+==[\w.+]+( ; [^\\]+?)?( --hash=sha256:[0-9a-f]{64})+", entry), entry
    assert len(entries) == len(read_lock(name).requirements)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_lock_locks_what_it_is_named_after(name: str) -> None:
    assert read_lock(name).version_of(name)


def test_the_locks_are_of_one_version_of_vllm_and_of_the_uv_that_was_measured() -> None:
    assert read_lock("vllm").version_of("vllm") == read_lock("vllm-cpu").version_of("vllm-cpu") == "0.32.0"
    assert read_lock("uv").version_of("uv") == "0.13.9"


def test_the_lock_for_cards_holds_on_every_debian_that_the_package_installs_on() -> None:
    pythons = {f"3.{minor}-{machine}" for minor in (11, 12, 13, 14) for machine in ("x86_64", "aarch64")}
    assert read_lock("vllm").environments == read_lock("uv").environments == pythons


def test_the_lock_for_the_cpu_leaves_out_what_breaks_it_and_brings_no_cuda() -> None:
    lock = read_lock("vllm-cpu")
    assert lock.version_of("torch").endswith("+cpu")
    assert not [wanted.name for wanted in lock.requirements if wanted.name in LEFT_OUT or wanted.name.startswith(("nvidia-", "cuda-"))]


def test_nvcc_of_the_lock_belongs_to_its_runtime() -> None:
    """With nvcc 13.5 and runtime 13.0 each compilation fails: "CUDA compiler and CUDA toolkit headers are incompatible"."""
    lock = read_lock("vllm")
    assert lock.cuda == (13, 0)
    for name in ("nvidia-cuda-nvcc", "nvidia-cuda-crt", "nvidia-nvvm", "nvidia-cuda-cccl", "nvidia-cuda-nvrtc"):
        assert lock.version_of(name).startswith("13.0."), name
    assert read_lock("vllm-cpu").cuda is None


@pytest.mark.parametrize("name", SHIPPED)
def test_the_wheels_of_a_lock_run_on_the_oldest_debian_that_the_package_installs_on(name: str) -> None:
    assert (2, 17) <= read_lock(name).glibc <= (2, 36)


def test_no_lock_names_a_place() -> None:
    for name in SHIPPED:
        assert not re.search(r"://|/(opt|home|root|tmp)/", (LOCKS / f"{name}.txt").read_text())


def test_what_a_folder_lacks(tmp_path: Path) -> None:
    digest = "0" * 64
    wanted = ("msgspec==0.22.0", "torch==2.13.0+cpu", "some-name==1.0", "six==1.17.0 ; python_full_version >= '3.12'")
    lines = "".join(f"{line} \\\n    --hash=sha256:{digest}\n" for line in wanted)
    (tmp_path / "x.txt").write_text(f"# for: 3.11-x86_64\n{lines}")
    lock = read_lock("x", tmp_path)
    assert [wanted.conditional for wanted in lock.requirements] == [False, False, False, True]
    assert lock.requirements[0].hashes == (f"sha256:{digest}",)
    files = frozenset(
        {"torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl", "Some_Name-1.0-py3-none-any.whl", "msgspec-0.21.0-py3-none-any.whl", "x"}
    )
    assert lock.lacking(files) == ("msgspec 0.22.0",)
    assert lock.lacking(files | {"msgspec-0.22.0-1-py3-none-any.whl"}) == ()


@pytest.mark.parametrize(
    "line", ["torch", "torch>=2", "torch==2.13.0", "-r other.txt", "torch==2.13.0 --hash=sha256:12", "torch @ https://x/y.whl"]
)
def test_a_damaged_lock_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "x.txt").write_text(f"{line}\n")
    with pytest.raises(Failure, match=r"x\.txt is damaged"):
        read_lock("x", tmp_path)
