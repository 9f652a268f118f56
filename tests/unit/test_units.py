"""The units as systemd parses them, without running any: `systemd --test` as nobody (skipped where there is no systemd)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllm_safe.config.settings import Config
from vllm_safe.earlyoom.earlyoom_arguments import decide_earlyoom

UNITS = Path(__file__).parents[2] / "systemd"
SYSTEMD = Path("/lib/systemd/systemd")
SYSTEM_UNITS = Path("/lib/systemd/system")

# A substitute where earlyoom is not installed: the part of Debian's unit that matters here.
EARLYOOM = "[Service]\nEnvironmentFile=-/etc/default/earlyoom\nExecStart=/usr/bin/earlyoom $EARLYOOM_ARGS\nRestart=always\n"


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Make a folder that every user can read, since systemd reads as nobody; pytest's own folders are private."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.fixture(scope="module")
def dumped(folder: Path) -> str:
    """Return everything that systemd parsed, and its complaints."""
    if not SYSTEMD.exists() or not shutil.which("setpriv"):
        pytest.skip("no systemd on this machine to parse the units")
    shutil.copytree(UNITS, folder, dirs_exist_ok=True)
    (folder / "earlyoom.service").write_text(EARLYOOM)
    (folder / "earlyoom.service.d").mkdir()
    (folder / "earlyoom.service.d/50-vllm-safe.conf").write_text(decide_earlyoom(Config()).dropin or "")
    wants = [path.name.replace("@.", "@x.") for path in folder.glob("*.*") if path.is_file()]
    (folder / "all.target").write_text(f"[Unit]\nWants={' '.join(wants)}\nDefaultDependencies=no\n")
    drop = ["setpriv", "--reuid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    environment = ["SYSTEMD_LOG_TARGET=console", "SYSTEMD_LOG_LEVEL=info", f"SYSTEMD_UNIT_PATH={folder}:{SYSTEM_UNITS}"]
    command = [*drop, "env", "-i", *environment, str(SYSTEMD), "--system", "--test", "--unit=all.target"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    text = result.stdout + result.stderr
    if "-> By units:" not in text:
        pytest.skip(f"systemd does not run here, not even to test: {text[-200:]}")
    return text


def unit(dumped: str, name: str) -> str:
    """Return systemd's dump of one unit."""
    match = re.search(rf"-> Unit {re.escape(name)}:\n(.*?)(?=\n\s*-> Unit |\Z)", dumped, re.DOTALL)
    assert match, f"{name} was not loaded"
    return match[1]


def test_systemd_has_nothing_to_complain_about(dumped: str) -> None:
    complaints = [
        line for line in dumped.splitlines() if re.search(r"Unknown|ignoring|Failed to parse|Invalid|deprecated|not executable", line)
    ]
    ours = [line for line in complaints if re.search(r"vllm|50-vllm-safe", line)]
    assert [line for line in ours if "is not executable" not in line] == []


def test_every_unit_says_what_it_is_and_where_to_read_more(dumped: str) -> None:
    for name in ("vllm.slice", "vllm.target", "vllm@x.service", "vllm-safe-prepare@x.service", "vllm-safe-protect.service"):
        text = unit(dumped, name)
        assert "Unit Load State: loaded" in text
        assert "Description: " in text
        assert "Documentation: " in text


def test_earlyoom_reads_our_arguments_after_the_admins(dumped: str) -> None:
    text = unit(dumped, "earlyoom.service")
    files = re.findall(r"EnvironmentFile: (\S+)", text)
    assert files[-1].endswith("/var/lib/vllm-safe/earlyoom.env")
    assert files[0].endswith("/etc/default/earlyoom")
    assert "Nice: -20" in text
    assert "OOMScoreAdjust: -100" in text
    assert re.search(r"After: vllm-safe-protect\.service", text)


def test_a_start_is_prepared_first_and_after_the_swap(dumped: str) -> None:
    assert re.search(r"Requires: vllm-safe-prepare@x\.service", unit(dumped, "vllm@x.service"))
    assert re.search(r"After: vllm-safe-prepare@x\.service", unit(dumped, "vllm@x.service"))
    assert re.search(r"After: vllm-safe-swap\.service", unit(dumped, "vllm-safe-prepare@x.service"))
    assert re.search(r"ConsistsOf: vllm@x\.service", unit(dumped, "vllm.target"))


def test_models_have_a_slice_of_their_own_and_prepare_has_not(dumped: str) -> None:
    assert "Slice: vllm.slice" in unit(dumped, "vllm@x.service")
    assert "Slice: vllm.slice" not in unit(dumped, "vllm-safe-prepare@x.service")


def test_the_root_units_write_where_they_must_and_nowhere_else() -> None:
    for name in ("vllm-safe-prepare@.service", "vllm-safe-protect.service"):
        text = (UNITS / name).read_text()
        assert "ProtectSystem=strict" in text
        writable = {path for line in re.findall(r"^ReadWritePaths=(.*)$", text, re.MULTILINE) for path in line.split()}
        ours = {"/run/vllm-safe", "/var/lib/vllm-safe", "/run/systemd/system/earlyoom.service.d"}
        assert writable - {"-/var/lib/prometheus/node-exporter"} == ours


def test_the_driver_may_be_loaded_and_its_nodes_made() -> None:
    """These settings would forbid what the unit is for, the last two by the devices that they imply. No machine with a GPU has tried it."""
    text = (UNITS / "vllm-safe-nvidia.service").read_text()
    for forbidding in ("ProtectKernelModules", "PrivateDevices", "DevicePolicy", "DeviceAllow", "ProtectClock"):
        assert f"\n{forbidding}=" not in text, forbidding
    assert {"CAP_SYS_MODULE", "CAP_MKNOD"} <= set(
        re.findall(r"CAP_\w+", re.findall(r"^CapabilityBoundingSet=(.*)$", text, re.MULTILINE)[0])
    )
    assert "@module" in re.findall(r"^SystemCallFilter=(.*)$", text, re.MULTILINE)[0]


def test_power_limits_are_set_between_the_driver_and_the_check_of_a_start(dumped: str) -> None:
    assert re.search(r"After: vllm-safe-nvidia\.service", unit(dumped, "vllm-safe-power.service"))
    assert re.search(r"After: vllm-safe-power\.service", unit(dumped, "vllm-safe-prepare@x.service"))
    assert re.search(r"Wants: vllm-safe-power\.service", unit(dumped, "vllm@x.service"))
    text = (UNITS / "vllm-safe-power.service").read_text()
    assert "\nDeviceAllow=char-nvidia* rw\n" in text
    assert "\nPrivateDevices=" not in text
    assert re.findall(r"^CapabilityBoundingSet=(.*)$", text, re.MULTILINE) == ["CAP_SYS_ADMIN"]


def test_every_service_has_a_sandbox_and_a_row_in_the_readme() -> None:
    """The figures themselves are compared with a real systemd in tests/system/test_permissions.py."""
    readme = (UNITS.parent / "README.md").read_text()
    for path in UNITS.glob("*.service"):
        text = path.read_text()
        for setting in ("CapabilityBoundingSet", "NoNewPrivileges", "SystemCallFilter", "RestrictAddressFamilies", "RestrictNamespaces"):
            assert f"\n{setting}=" in text, f"{path.name}: {setting}"
        powers = " ".join(re.findall(r"^CapabilityBoundingSet=(.*)$", text, re.MULTILINE)).strip() or "none"
        assert re.search(rf"^\| `{path.stem}(NAME)?` \|.*\| {powers} \| \d\.\d \|$", readme, re.MULTILINE), path.name


def test_what_runs_before_each_start_is_never_refused_for_having_run_often() -> None:
    for name in ("vllm@.service", "vllm-safe-prepare@.service", "vllm-safe-swap.service", "vllm-safe-nvidia.service"):
        assert "\nStartLimitIntervalSec=0\n" in (UNITS / name).read_text(), name


def test_each_group_of_directives_says_why() -> None:
    for path in (*UNITS.glob("*.*"), *UNITS.glob("*.d/*.conf")):
        if path.is_file():
            groups = [group for group in path.read_text().split("\n\n") if "=" in group]
            silent = [group for group in groups if "#" not in group and not re.match(r"\[(Unit|Install)\]", group.strip())]
            assert not silent, f"{path.name}: no word on {silent}"
