"""Beds for the system tests. Tests whose bed is not available on this machine are skipped, with the reason."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.beds import cache, engine, here, quick_engine
from tests.beds.machine import Machine
from tests.beds.nspawn import Nspawn
from tests.beds.vm import Saved, Virtual, run_folder

if TYPE_CHECKING:  # autopkgtest has no pytest-xdist
    from xdist.workermanage import WorkerController

SHARED = "shared"  # for the workers of pytest-xdist: a folder that they share
SHARED_FOLDER = pytest.StashKey[cache.RunFolder]()
DEB = Path(__file__).parents[2] / "dist/vllm-safe.deb"
PROGRAMS = {
    "nspawn": ("mmdebstrap", "systemd-nspawn", "slirp4netns", "nsenter", "setpriv"),
    "vm": ("mmdebstrap", "qemu-system-x86_64", "mkfs.ext4", "ssh-keygen"),
}

# test_vm_bed stands before its time: most of it needs no saved machine, which one worker makes while the others wait.
LONGEST_FIRST = (
    *("test_drill", "test_vm_bed", "test_swap", "test_guard", "test_gateway", "test_engine", "test_serving", "test_readme", "test_build"),
    *("test_limits", "test_load", "test_upgrade", "test_fetch", "test_nodes", "test_on_demand", "test_install"),
    *("test_why", "test_cards", "test_hogs", "test_misbehaviour", "test_service", "test_record", "test_progress"),
    "test_package",
)


def _lacking(tier: str) -> str:
    """Return why the beds of a tier are not available on this machine, or ""."""
    if os.geteuid() != 0:
        return "needs root"
    if here.WANTED:
        return ""
    missing = [program for program in PROGRAMS[tier] if shutil.which(program) is None]
    return f"not installed: {', '.join(missing)} (make test installs them)" if missing else ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest modules first, and mark the tests that are served the real vLLM.

    Those that use vLLM otherwise say so themselves: `-m "not engine"` leaves both out. With several workers the module that starts last
    decides how long all take.
    """
    places = {name: place for place, name in enumerate(LONGEST_FIRST)}
    if not here.WANTED:  # there all modules have one machine, and its first tests count on nothing having been started
        items.sort(key=lambda item: places.get(item.path.stem, len(places)))  # within a module the order stays
    for item in items:
        if isinstance(item, pytest.Function) and "nspawn_serving" in item.fixturenames:
            item.add_marker(pytest.mark.engine)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip before any fixture is made. tests/conftest.py says where that counts as a failure."""
    for tier in PROGRAMS:
        if item.get_closest_marker(tier) and (why := _lacking(tier)):
            pytest.skip(why)


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_configure_node(node: WorkerController) -> None:
    """Give all workers one folder for what they share; it goes with the process that started them."""
    if os.geteuid() == 0:
        node.workerinput[SHARED] = str(_shared_folder(node.config).path)


def _shared_folder(config: pytest.Config) -> cache.RunFolder:
    if SHARED_FOLDER not in config.stash:
        folder = config.stash[SHARED_FOLDER] = run_folder()
        config.add_cleanup(folder.remove)
    return config.stash[SHARED_FOLDER]


@pytest.fixture(scope="session")
def deb() -> Path:
    """Return the package that `make deb` has built."""
    if not DEB.exists():
        pytest.fail(f"{DEB} is not there: make deb", pytrace=False)
    return DEB


@pytest.fixture(scope="module")
def nspawn_bed() -> Iterator[Nspawn]:
    """Boot a fresh Debian for each module of tests, without the package and without a network."""
    with Nspawn(network=False) as bed:
        yield bed


@pytest.fixture(scope="module")
def nspawn_installed(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """Boot a fresh Debian on which apt has installed the package, without a network."""
    if here.WANTED:
        yield here.Here()
        return
    deb: Path = request.getfixturevalue("deb")
    with Nspawn(network=False) as bed:
        bed.install(deb)
        yield bed


@pytest.fixture(scope="module")
def nspawn_serving(deb: Path) -> Iterator[Nspawn]:
    """Boot a fresh Debian with the package, the real vLLM, the tiny model and engine.CONFIG. No model is started."""
    with Nspawn(network=False, layers=quick_engine.layers(deb)) as bed:
        bed.install(deb)
        bed.write("/etc/vllm-safe/config.yaml", engine.CONFIG)
        yield bed


@pytest.fixture(scope="module")
def vm_bed() -> Iterator[Virtual]:
    """Boot a fresh machine of 1 GiB for each module of tests, without the package."""
    with Virtual() as bed:
        yield bed


@pytest.fixture(scope="session")
def installed(request: pytest.FixtureRequest, deb: Path) -> Iterator[Saved]:
    """Save a machine on which apt has installed the package. In emulation that and a boot take minutes, so all workers share it."""
    if (shared := getattr(request.config, "workerinput", {}).get(SHARED)) is not None:
        yield _install_once(deb, Path(shared))
        return
    own = run_folder()
    yield _install_once(deb, own.path)
    own.remove()


def _install_once(deb: Path, folder: Path) -> Saved:
    """Return the saved machine in `folder`. The first worker makes it, and the others wait."""
    saved = Saved.at(folder)
    with cache.locked(folder / ".making"):
        if not saved.state.exists():
            with Virtual() as bed:
                bed.install(deb)
                bed.save(folder)
    return saved


@pytest.fixture(scope="module")
def vm_installed(installed: Saved) -> Iterator[Virtual]:
    """Start a fresh machine of 1 GiB for each module of tests, with the package."""
    with Virtual(saved=installed) as bed:
        yield bed
