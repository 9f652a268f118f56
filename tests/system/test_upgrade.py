"""Another version of the package over this one, back, and broken off; and another Debian below it. A model runs all the time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.beds import cache, debs, trees
from tests.beds.machine import Machine
from tests.beds.nspawn import Bind, Nspawn

pytestmark = pytest.mark.nspawn

CONFIG = """
swap: {size: none}
models:
  web:
    command: [/usr/bin/python3, -m, http.server, --bind, 127.0.0.1, 8001]
    port: 8001
    health: http://127.0.0.1:8001/
"""
CONFIG_FILE = "/etc/vllm-safe/config.yaml"
KEEP = "--force-confold"  # what a person answers who wants to keep the edited file
WATCHERS = {"vllm-safe-guard.service", "vllm-safe-record@web.service"}  # an upgrade restarts them, where they run
BESIDE = {*WATCHERS, "vllm-safe-tunables.service"}  # what runs beside a model since 0.2.0
FIRST_FILE = "/usr/share/vllm-safe/config.yaml"  # what the configuration of a new installation is copied from
MARK = "Description=Model %i of another version"
# Each script begins with this: told to, it ends dpkg as a power cut does, or itself as a mistake does; once.
SABOTAGE = """\
set -e
if [ -e "/root/$(basename "$0" | sed 's/.*[.]//')-$1" ]; then
    how=$(cat "/root/$(basename "$0" | sed 's/.*[.]//')-$1")
    rm -f "/root/$(basename "$0" | sed 's/.*[.]//')-$1"
    [ "$how" = fail ] && exit 1
    kill -KILL $PPID
fi
"""


@pytest.fixture(scope="module")
def packages(deb: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Make the last release, this package, and a later version of it: with another unit, another config.yaml, and scripts that fail."""
    folder = tmp_path_factory.mktemp("packages")
    made = {"last": debs.last_release(), "this": deb}
    for name, version in (("next", debs.NEXT), ("after", f"{debs.NEXT}.1")):
        tree = debs.unpacked(deb, folder / name, version)
        for script in ("prerm", "postrm", "postinst"):
            path = tree / "DEBIAN" / script
            path.write_text(path.read_text().replace("set -e\n", SABOTAGE, 1))
        unit = tree / "usr/lib/systemd/system/vllm@.service"
        unit.write_text(unit.read_text().replace("Description=Model %i", MARK))
        first = tree / FIRST_FILE[1:]
        first.write_text(f"{first.read_text()}# a later version knows more\n")
        made[name] = debs.packed(tree, folder / f"{name}.deb")
    return made


@pytest.fixture(scope="module")
def bed(packages: dict[str, Path]) -> Iterator[Nspawn]:
    """Boot a bed with the last release, an edited configuration and a model that runs."""
    with Nspawn(network=False) as bed:
        for name, package in packages.items():
            bed.put(package, f"/root/{name}.deb")
        bed.run("apt-get install --yes --no-install-recommends /root/last.deb", timeout=300)
        bed.write(CONFIG_FILE, CONFIG)
        bed.run("systemctl enable --now vllm@web")
        yield bed


def running(bed: Machine) -> dict[str, str]:
    """Return the invocation of each active service of the package."""
    units = bed.out("systemctl list-units --plain --no-legend --state=active 'vllm*.service' | cut -d' ' -f1").split()
    return {unit: bed.properties(unit, "InvocationID")["InvocationID"] for unit in units}


def assert_in_order(bed: Machine) -> None:
    """Check that the package is configured, its units are loaded as on the disk, the configuration is the user's, and it works."""
    assert bed.out("dpkg-query --show --showformat='${Status}' vllm-safe") == "install ok installed"
    assert bed.out("dpkg --audit") == ""
    assert bed.properties("vllm@web", "NeedDaemonReload", "ActiveState") == {"NeedDaemonReload": "no", "ActiveState": "active"}
    assert bed.read(CONFIG_FILE) == CONFIG
    assert bed.out("ls /etc/vllm-safe") == "config.yaml"
    assert json.loads(bed.out("vllm-safe show web --json"))


def upgrade(bed: Machine, name: str) -> None:
    """Install a package with nobody there to answer: what dpkg would ask, it fails of."""
    said = bed.run(f"env --unset=DEBIAN_FRONTEND dpkg --install /root/{name}.deb </dev/null")
    assert "Configuration file" not in said.stdout + said.stderr


def assert_kept(before: dict[str, str], after: dict[str, str]) -> None:
    """All that ran runs, and nothing but what watches a model was restarted."""
    assert after.keys() >= before.keys()
    assert {unit for unit in before if after[unit] != before[unit]} <= WATCHERS


def test_an_upgrade_from_the_last_release_asks_nothing_and_stops_nothing(bed: Nspawn) -> None:
    """The configuration is edited, and the release before has another one as a conffile."""
    before = running(bed)
    assert before.keys() >= {"vllm@web.service", *WATCHERS}
    upgrade(bed, "this")
    assert_kept(before, running(bed))
    assert_in_order(bed)
    bed.run("systemctl restart vllm@web", timeout=60)  # so that all that this version runs beside a model is there


def test_a_configuration_that_nobody_touched_becomes_the_short_one(packages: dict[str, Path]) -> None:
    """Also without a question; and what is deleted after that stays deleted, until a purge and a new installation."""
    with Nspawn(network=False) as bed:
        for name, package in packages.items():
            bed.put(package, f"/root/{name}.deb")
        bed.run("apt-get install --yes --no-install-recommends /root/last.deb", timeout=300)
        shipped = bed.read(CONFIG_FILE)
        bed.write(CONFIG_FILE, CONFIG)
        bed.run("systemctl start vllm@web")
        bed.write(CONFIG_FILE, shipped)
        before = running(bed)
        upgrade(bed, "this")
        assert_kept(before, running(bed))
        assert bed.read(CONFIG_FILE) == bed.read(FIRST_FILE) != shipped
        assert bed.out(f"ls /etc/vllm-safe && stat -c '%U:%G %a' {CONFIG_FILE}") == "config.yaml\nroot:root 644"
        assert json.loads(bed.out("vllm-safe show qwen72b --json"))
        upgrade(bed, "next")
        assert "a later version knows more" not in bed.read(CONFIG_FILE)

        bed.run(f"rm {CONFIG_FILE}")
        upgrade(bed, "after")
        bed.run("dpkg --remove vllm-safe")
        upgrade(bed, "after")
        assert not bed.exists(CONFIG_FILE)
        bed.run("dpkg --purge vllm-safe")
        assert not bed.exists("/etc/vllm-safe")
        upgrade(bed, "after")
        assert "a later version knows more" in bed.read(CONFIG_FILE)
        bed.write("/etc/vllm-safe/api-key", "the user's")
        bed.run("dpkg --purge vllm-safe")
        assert bed.out("ls /etc/vllm-safe") == "api-key"


def test_an_upgrade_restarts_what_watches_the_model_and_nothing_else(bed: Nspawn) -> None:
    before, runs = running(bed), bed.out("ls /var/lib/vllm-safe/runs/web")
    assert before.keys() >= {"vllm@web.service", *BESIDE}
    upgrade(bed, "next")
    after = running(bed)
    assert {unit for unit in before if after[unit] != before[unit]} == WATCHERS
    assert bed.out("ls /var/lib/vllm-safe/runs/web") == runs  # the recorder goes on with the same run
    assert bed.properties("vllm@web", "Description") == {"Description": MARK.partition("=")[2].replace("%i", "web")}
    assert_in_order(bed)


def test_what_does_not_run_is_not_started_by_an_upgrade(bed: Nspawn) -> None:
    bed.run("systemctl stop vllm-safe-guard")
    upgrade(bed, "next")
    assert bed.properties("vllm-safe-guard", "ActiveState") == {"ActiveState": "inactive"}
    bed.run("systemctl start vllm-safe-guard")


@pytest.mark.parametrize("how", ["fail", "killed"])
@pytest.mark.parametrize("step", ["prerm-upgrade", "postrm-upgrade", "postinst-configure"])
def test_an_upgrade_that_was_broken_off_is_mended(bed: Nspawn, step: str, how: str) -> None:
    before = running(bed)
    bed.write(f"/root/{step}", how)
    bed.run("dpkg --install /root/after.deb", check=False)
    assert not bed.exists(f"/root/{step}")
    mended = bed.run("dpkg --configure --pending", check=False)
    if "reinstall" in bed.out("dpkg --audit"):  # killed in the middle of unpacking, dpkg itself asks to install it again
        assert (how, step) in {("killed", "prerm-upgrade"), ("killed", "postrm-upgrade")}
        bed.run("dpkg --install /root/after.deb")
    else:
        assert mended.returncode == 0, mended.stderr
    assert_kept(before, running(bed))
    assert_in_order(bed)


@pytest.mark.parametrize("how", ["fail", "killed"])
def test_a_removal_that_was_broken_off_can_be_taken_back(bed: Nspawn, how: str) -> None:
    bed.write("/root/prerm-remove", how)
    assert bed.run("dpkg --remove vllm-safe", check=False).returncode != 0
    bed.run("dpkg --configure --pending && vllm-safe --version && dpkg --install /root/after.deb && systemctl start vllm@web")
    assert_in_order(bed)


def test_a_downgrade_to_the_last_release_stops_nothing_either(bed: Nspawn) -> None:
    before = running(bed)
    upgrade(bed, "this")
    assert_kept(before, running(bed))
    assert_in_order(bed)
    bed.run(f"dpkg {KEEP} --install /root/last.deb")
    assert running(bed)["vllm@web.service"] == before["vllm@web.service"]
    bed.run("systemctl restart vllm@web", timeout=60)
    assert_in_order(bed)
    # Units that the older release lacks end with their files; systemd forgets them at the next boot.
    assert [line for line in bed.failed_units().splitlines() if " not-found " not in line] == []


@pytest.mark.os_upgrade
def test_an_upgrade_of_the_os_breaks_nothing(deb: Path) -> None:
    """From bookworm to trixie, as its release notes say, with a model that runs; most packages come from the trees' archives."""
    archives = cache.ROOT / "archives/trixie"
    with Nspawn(replace(trees.CONTAINER, suite="bookworm"), binds=[Bind(archives, "/srv/archives")] if archives.exists() else []) as bed:
        bed.install(deb)
        bed.write(CONFIG_FILE, CONFIG)
        bed.run("systemctl enable --now vllm@web")
        before = running(bed)["vllm@web.service"]
        bed.run("sed -i s/bookworm/trixie/ /etc/apt/sources.list; cp /srv/archives/*.deb /var/cache/apt/archives/", check=False)
        bed.run("apt-get update --error-on=any", timeout=300)
        bed.run(f"apt-get --yes -o Dpkg::Options::={KEEP} full-upgrade </dev/null", timeout=900)
        assert bed.out("python3 --version") >= "Python 3.13"
        assert running(bed)["vllm@web.service"] == before
        assert_in_order(bed)
        bed.run("systemctl restart vllm@web", timeout=60)
        bed.run("apt-get purge --yes vllm-safe")
        assert not bed.exists("/usr/lib/vllm-safe")
