"""Beds for the system tests. What is not to be had here skips its tests, with the reason."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.beds import engine, here
from tests.beds.machine import Machine
from tests.beds.nspawn import Nspawn
from tests.beds.vm import Saved, Virtual

DEB = Path(__file__).parents[2] / "dist/vllm-safe.deb"
PROGRAMS = {
    "nspawn": ("mmdebstrap", "systemd-nspawn", "slirp4netns", "nsenter", "setpriv"),
    "vm": ("mmdebstrap", "qemu-system-x86_64", "mkfs.ext4", "ssh-keygen"),
}


def _lacking(tier: str) -> str:
    """Why the beds of a tier cannot be had on this machine; "" if they can."""
    if os.geteuid() != 0:
        return "needs root"
    if here.WANTED:
        return ""
    missing = [program for program in PROGRAMS[tier] if shutil.which(program) is None]
    return f"not installed: {', '.join(missing)} (make test installs them)" if missing else ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that are served the real vLLM; those that use it otherwise say so. `-m "not engine"` leaves both out."""
    for item in items:
        if isinstance(item, pytest.Function) and "nspawn_serving" in item.fixturenames:
            item.add_marker(pytest.mark.engine)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip before any fixture is made. tests/conftest.py says where that counts as a failure."""
    for tier in PROGRAMS:
        if item.get_closest_marker(tier) and (why := _lacking(tier)):
            pytest.skip(why)


@pytest.fixture(scope="session")
def deb() -> Path:
    """The package that `make deb` made."""
    if not DEB.exists():
        pytest.fail(f"{DEB} is not there: make deb", pytrace=False)
    return DEB


@pytest.fixture(scope="module")
def nspawn_bed() -> Iterator[Nspawn]:
    """A fresh Debian for each module of tests, without our package and without a network."""
    with Nspawn(network=False) as bed:
        yield bed


@pytest.fixture(scope="module")
def nspawn_installed(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """The same with our package installed by apt."""
    if here.WANTED:
        yield here.Here()
        return
    deb: Path = request.getfixturevalue("deb")
    with Nspawn(network=False) as bed:
        bed.install(deb)
        yield bed


@pytest.fixture(scope="module")
def nspawn_serving(deb: Path) -> Iterator[Nspawn]:
    """The same with the real vLLM, the tiny model and a config for both, as engine.CONFIG has it; nothing is started."""
    with Nspawn(network=False, layers=[engine.layer(deb)]) as bed:
        bed.install(deb)
        bed.write("/etc/vllm-safe/config.yaml", engine.CONFIG)
        yield bed


@pytest.fixture(scope="module")
def vm_bed() -> Iterator[Virtual]:
    """A fresh machine of 1 GiB for each module of tests, without our package."""
    with Virtual() as bed:
        yield bed


@pytest.fixture(scope="session")
def installed(deb: Path) -> Iterator[Saved]:
    """A machine on which apt has installed our package: emulated, that and a boot take minutes."""
    with Virtual() as bed:
        bed.install(deb)
        yield bed.save()


@pytest.fixture(scope="module")
def vm_installed(installed: Saved) -> Iterator[Virtual]:
    """A fresh machine of 1 GiB for each module of tests, with our package."""
    with Virtual(saved=installed) as bed:
        yield bed
