"""Beds for the system tests. Tests whose bed is not available on this machine are skipped, with the reason."""

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
    """Return why the beds of a tier are not available on this machine, or ""."""
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
    with Nspawn(network=False, layers=[engine.layer(deb)]) as bed:
        bed.install(deb)
        bed.write("/etc/vllm-safe/config.yaml", engine.CONFIG)
        yield bed


@pytest.fixture(scope="module")
def vm_bed() -> Iterator[Virtual]:
    """Boot a fresh machine of 1 GiB for each module of tests, without the package."""
    with Virtual() as bed:
        yield bed


@pytest.fixture(scope="session")
def installed(deb: Path) -> Iterator[Saved]:
    """Save a machine on which apt has installed the package, since that and a boot take minutes in emulation."""
    with Virtual() as bed:
        bed.install(deb)
        yield bed.save()


@pytest.fixture(scope="module")
def vm_installed(installed: Saved) -> Iterator[Virtual]:
    """Start a fresh machine of 1 GiB for each module of tests, with the package."""
    with Virtual(saved=installed) as bed:
        yield bed
