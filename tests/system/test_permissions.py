"""The privileges of the package on the machine: the table in README.md against systemd, and the modes of what it installs and makes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.beds.nspawn import Nspawn

pytestmark = pytest.mark.nspawn

README = Path(__file__).parents[2] / "README.md"
ROWS = re.findall(r"^\| `(vllm[\w@-]*?)(NAME)?` \|.*\| (\d+\.\d) \|$", README.read_text(), re.MULTILINE)


def test_every_unit_of_ours_that_runs_something_is_in_the_table(nspawn_installed: Nspawn) -> None:
    services = nspawn_installed.out("dpkg -L vllm-safe | sed -n 's,.*/systemd/system/\\(vllm[^/]*\\)\\.service$,\\1,p'").split()
    assert {name for name, _, _ in ROWS} == set(services)


@pytest.mark.parametrize(("unit", "instance", "exposure"), ROWS)
def test_the_exposure_is_the_one_in_the_table(nspawn_installed: Nspawn, unit: str, instance: str, exposure: str) -> None:
    name = f"{unit}{'x' if instance else ''}.service"
    said = nspawn_installed.out(f"systemd-analyze security --no-pager {name} | tail -1")
    assert re.search(r": (\d+\.\d) ", said), said
    assert re.search(r": (\d+\.\d) ", said)[1] == exposure  # type: ignore[index]


def test_nothing_of_ours_may_be_written_by_others_or_gives_powers(nspawn_installed: Nspawn) -> None:
    ours = "/etc/vllm-safe /usr/lib/vllm-safe /var/lib/vllm-safe /var/cache/vllm-safe /run/vllm-safe"
    assert nspawn_installed.out(f"find {ours} ! -type l \\( -perm /o=w -o -perm /6000 ! -type d -o -perm /4000 \\)") == ""


def test_what_root_runs_is_roots_alone(nspawn_installed: Nspawn) -> None:
    assert nspawn_installed.out("find /usr/lib/vllm-safe /etc/vllm-safe ! -user root") == ""


def test_a_configuration_that_others_may_write_is_refused(nspawn_installed: Nspawn) -> None:
    bed = nspawn_installed
    bed.run("chmod o+w /etc/vllm-safe/config.yaml", check=True)
    try:
        result = bed.run(["vllm-safe", "check"], check=False)
    finally:
        bed.run("chmod o-w /etc/vllm-safe/config.yaml", check=True)
    assert result.returncode == 2  # wrong configuration
    assert "/etc/vllm-safe/config.yaml" in result.stderr
