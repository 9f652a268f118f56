"""The package as a Debian developer makes and judges it, in the release of VLLM_SAFE_RELEASE: build, lintian, piuparts, autopkgtest."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.beds import debs, trees
from tests.beds.nspawn import Bind, Nspawn

pytestmark = pytest.mark.nspawn

SOURCE = "/srv/build/vllm-safe"
DEB = "/root/vllm-safe.deb"
WHEELS = "/srv/wheelhouse"
BASE = "/srv/base"
LISTED = "dpkg-deb --contents {} | awk '{{print $1, $2, $6, $7, $8}}'"  # without sizes and times


@pytest.fixture(scope="module")
def bed(deb: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nspawn]:
    """Boot a bed with the build tools of the release, the sources, the wheels and the package of `make deb`."""
    archive = tmp_path_factory.mktemp("sources") / "sources.tar"
    debs.sources(archive)
    binds = [Bind(debs.wheelhouse(), WHEELS, writable=True), Bind(trees.tree(trees.CONTAINER), BASE)]
    with Nspawn(trees.DEVELOPMENT, binds=binds) as bed:
        bed.put(archive, "/srv/sources.tar")
        bed.put(deb, DEB)
        bed.run(f"mkdir -p {SOURCE} && tar -C {SOURCE} -xf /srv/sources.tar")
        yield bed


@pytest.fixture(scope="module")
def built(bed: Nspawn) -> str:
    """Build the package in this release, without network once the wheels for its Python are there."""
    bed.run(f"VLLM_SAFE_WHEELHOUSE={WHEELS} {SOURCE}/debian/wheelhouse", timeout=300)
    bed.run(
        f"cd {SOURCE} && VLLM_SAFE_WHEELHOUSE={WHEELS} unshare --net dpkg-buildpackage --build=full --no-sign --no-pre-clean", timeout=600
    )
    return bed.out(f"ls {SOURCE}/../vllm-safe_*.deb")


def test_a_clean_machine_without_a_network_builds_the_same(bed: Nspawn, built: str, deb: Path) -> None:
    if trees.RELEASE == "bookworm":
        assert bed.out(f"sha256sum < {built}").split()[0] == hashlib.sha256(deb.read_bytes()).hexdigest(), "or dist/ is old: make deb"
    else:  # another debhelper, dpkg and gzip: other bytes, the same files
        assert bed.out(LISTED.format(built)) == bed.out(LISTED.format(DEB))


def test_lintian_has_nothing_to_say(bed: Nspawn, built: str) -> None:
    """Of the sources and of the package that was built here, which is that of `make deb`."""
    changes = re.sub(r"[^/]*\.deb$", "*.changes", built)
    said = bed.run(f"lintian --allow-root --tag-display-limit 0 --display-level '>=warning' {changes}", check=False, timeout=900)
    assert (said.stdout, said.returncode) == ("", 0), said.stderr


def test_piuparts_passes(bed: Nspawn) -> None:
    """It copies the tree, installs, upgrades, removes and purges in the copy, and looks at what is left."""
    options = f"--existing-chroot={BASE} --distribution={trees.RELEASE} --mirror='{trees.host_mirror()} main' --tmpdir=/srv --no-eatmydata"
    options += " --ignore-regex=/var/cache/debconf/tmp.ci.*"  # apt's own, for the questions of what we depend on
    said = bed.run(f"piuparts {options} {DEB}", check=False, timeout=600)
    assert said.returncode == 0, said.stdout[-6000:]


def test_autopkgtest_passes(deb: Path, tmp_path: Path) -> None:
    """On a machine that has what the tests depend on, and that ends with this test."""
    debs.sources(tmp_path / "sources.tar")
    with Nspawn(trees.DEVELOPMENT, network=False) as bed:
        bed.put(tmp_path / "sources.tar", "/srv/sources.tar")
        bed.put(deb, DEB)
        bed.run(f"mkdir -p {SOURCE} && tar -C {SOURCE} -xf /srv/sources.tar")
        # The bed is a container with a systemd; the `null` of later releases does not know that.
        options = f"--no-built-binaries --ignore-restrictions=isolation-container {DEB} {SOURCE}/"
        said = bed.run(f"cd /srv && autopkgtest {options} -- null", check=False, timeout=600)
        output = said.stdout + said.stderr  # the log of later releases goes to stderr
        assert said.returncode in {0, 2}, output[-9000:]
        summary = output.rpartition(" summary\n")[2]
        assert re.findall(r"^(command|service) +(\S+)", summary, re.MULTILINE) == [("command", "PASS"), ("service", "PASS")]
