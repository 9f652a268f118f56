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
BESIDE = {"vllm-safe-guard.service", "vllm-safe-record@web.service", "vllm-safe-tunables.service"}  # what runs beside a model since 0.2.0
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
        sample = tree / CONFIG_FILE[1:]
        sample.write_text(f"{sample.read_text()}# a later version knows more\n")
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
    assert json.loads(bed.out("vllm-safe show web --json"))


def test_an_upgrade_from_the_last_release_stops_nothing(bed: Nspawn) -> None:
    before = running(bed)
    assert "vllm@web.service" in before
    bed.run(f"dpkg {KEEP} --install /root/this.deb")
    assert running(bed).items() >= before.items()
    assert_in_order(bed)
    bed.run("systemctl restart vllm@web", timeout=60)  # so that all that this version runs beside a model is there


def test_an_upgrade_stops_neither_the_model_nor_what_watches_it(bed: Nspawn) -> None:
    before = running(bed)
    assert before.keys() >= {"vllm@web.service", *BESIDE}
    bed.run(f"dpkg {KEEP} --install /root/next.deb")
    assert running(bed) == before
    assert bed.properties("vllm@web", "Description") == {"Description": MARK.partition("=")[2].replace("%i", "web")}
    assert_in_order(bed)


def test_an_edited_configuration_is_asked_about_once(bed: Nspawn) -> None:
    """What the later version ships lies beside the file. With no answer to give, dpkg would fail."""
    assert bed.read(f"{CONFIG_FILE}.dpkg-dist").endswith("# a later version knows more\n")
    bed.run("dpkg --install /root/next.deb </dev/null && dpkg --install /root/after.deb </dev/null")
    assert_in_order(bed)


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
    assert running(bed) == before
    assert_in_order(bed)


@pytest.mark.parametrize("how", ["fail", "killed"])
def test_a_removal_that_was_broken_off_can_be_taken_back(bed: Nspawn, how: str) -> None:
    bed.write("/root/prerm-remove", how)
    assert bed.run("dpkg --remove vllm-safe", check=False).returncode != 0
    bed.run("dpkg --configure --pending && vllm-safe --version && dpkg --install /root/after.deb && systemctl start vllm@web")
    assert_in_order(bed)


def test_a_downgrade_to_the_last_release_stops_nothing_either(bed: Nspawn) -> None:
    before = running(bed)
    bed.run(f"dpkg {KEEP} --install /root/this.deb")
    assert running(bed) == before
    assert_in_order(bed)
    bed.run(f"dpkg {KEEP} --install /root/last.deb")
    assert running(bed)["vllm@web.service"] == before["vllm@web.service"]
    bed.run("systemctl restart vllm@web", timeout=60)
    assert_in_order(bed)
    # What that release does not have, and this one had started, ends with its files; systemd forgets it at the next boot.
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
