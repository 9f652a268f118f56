"""The package in a Debian: what installing, upgrading, removing and purging it do, and what they leave alone."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.beds import trees
from tests.beds.machine import Machine
from tests.beds.nspawn import Nspawn
from tests.beds.vm import Virtual

CONFIG = """
swap: {size: none}
models:
  web:
    command: [/usr/bin/python3, -m, http.server, --bind, 127.0.0.1, 8001]
    port: 8001
    health: http://127.0.0.1:8001/
"""
NEXT_STEPS = "vllm-safe install && vllm-safe fetch qwen72b"
COPYRIGHT = "/usr/share/doc/vllm-safe/copyright"
COMPLETION = {
    "bash": "bash-completion/completions/vllm-safe",
    "zsh": "zsh/vendor-completions/_vllm-safe",
    "fish": "fish/vendor_completions.d/vllm-safe.fish",
}
TMPFILES = "systemd/tmpfiles.d/vllm-safe.conf"
FOREIGN = "/var/lib/vllm-safe/engine/link"  # user vllm owns the folder, and plants a link in it
# Paths that the installation of any package changes, or that change by themselves.
NOT_OURS = re.compile(r"/(var/(log|tmp|cache|lib/(dpkg|apt|systemd|private))|root|tmp|etc/(passwd|group|g?shadow)-?)(/|$)")
OURS_OFF = "fallocate --length 8M {0} && chmod 600 {0} && mkswap --label {1} {0}"


@pytest.fixture
def serving(deb: Path) -> Iterator[Nspawn]:
    """Boot a separate bed with the package and a model that runs and is enabled."""
    with Nspawn(network=False) as bed:
        bed.install(deb)
        bed.write("/etc/vllm-safe/config.yaml", CONFIG)
        bed.run("systemctl enable --now vllm@web")
        yield bed


def main_pid(bed: Machine, unit: str) -> str:
    return bed.properties(unit, "MainPID")["MainPID"]


def files(bed: Machine) -> set[str]:
    return {path for path in bed.out("find / -xdev").splitlines() if not NOT_OURS.match(path)}


def dropins_of_apply(bed: Machine) -> str:
    return bed.out("find /run/systemd/system.control -type f 2>/dev/null || true")


@pytest.mark.nspawn
class TestInstalled:
    def test_nothing_was_started_allocated_or_downloaded(self, nspawn_installed: Nspawn) -> None:
        assert nspawn_installed.out("systemctl list-units --plain --no-legend 'vllm*'") == ""
        assert not nspawn_installed.exists("/swapfile")
        assert nspawn_installed.out("find /var/lib/vllm-safe/engine /var/lib/vllm-safe/models /var/cache/vllm-safe -mindepth 1") == ""
        assert dropins_of_apply(nspawn_installed) == ""

    def test_the_program_has_the_version_of_the_package(self, nspawn_installed: Nspawn) -> None:
        installed = nspawn_installed.out("dpkg-query --show --showformat='${Version}' vllm-safe")
        assert nspawn_installed.out("vllm-safe --version") == f"vllm-safe {installed}"

    def test_nothing_needs_the_documentation(self, nspawn_installed: Nspawn) -> None:
        """Container images leave /usr/share/doc out (path-exclude of dpkg)."""
        nspawn_installed.run("mv /usr/share/doc/vllm-safe /root/doc")
        try:
            assert nspawn_installed.out("vllm-safe config").startswith("swap:\n")
            assert "tensor-parallel-size: 8" in nspawn_installed.out("vllm-safe config --sample")
        finally:
            nspawn_installed.run("mv /root/doc /usr/share/doc/vllm-safe")

    def test_the_machine_will_be_protected_after_a_reboot(self, nspawn_installed: Nspawn) -> None:
        assert nspawn_installed.out("systemctl is-enabled vllm-safe-protect") == "enabled"

    def test_no_file_is_writable_by_others_or_owned_by_them(self, nspawn_installed: Nspawn) -> None:
        loose = r"dpkg -L vllm-safe | xargs stat --format='%U:%G %a %F %n' | grep -vE '^root:root (644|755|777 symbolic)'"
        assert nspawn_installed.run(loose, check=False).stdout == ""

    def test_the_folders_belong_to_whom_they_should(self, nspawn_installed: Nspawn) -> None:
        folders = nspawn_installed.out(
            "stat -c '%n %U:%G %a' /var/lib/vllm-safe /var/lib/vllm-safe/* /var/cache/vllm-safe /run/vllm-safe/*"
        )
        assert folders.splitlines() == [
            "/var/lib/vllm-safe root:root 755",
            "/var/lib/vllm-safe/engine vllm:vllm 755",
            "/var/lib/vllm-safe/home vllm:vllm 700",
            "/var/lib/vllm-safe/models vllm:vllm 755",
            "/var/lib/vllm-safe/runs vllm-record:adm 2750",
            "/var/cache/vllm-safe vllm:vllm 750",
            "/run/vllm-safe/credentials root:root 700",
            "/run/vllm-safe/gateway root:vllm-gateway 750",
            "/run/vllm-safe/gpus vllm-record:root 755",
            "/run/vllm-safe/launch root:vllm 750",
            "/run/vllm-safe/on-demand root:vllm-gateway 750",
            "/run/vllm-safe/starts root:root 755",
            "/run/vllm-safe/state vllm:vllm 755",
        ]

    def test_every_file_has_an_author_and_a_licence(self, nspawn_installed: Nspawn) -> None:
        """Each library in the venv has a stanza of its own in the copyright file; what has none is ours."""
        named = re.findall(
            r"(?<=usr/lib/vllm-safe/)lib/python3/site-packages/([\w/]+(?:\.py)?)(?:/\*)?$", nspawn_installed.read(COPYRIGHT), re.MULTILINE
        )
        site = "/usr/lib/vllm-safe/lib/python3/site-packages"
        folders = set(nspawn_installed.out(f"cd {site} && ls -d -- *").split())
        ours = {"vllm_safe", *(folder for folder in folders if folder.startswith("vllm_safe-"))}
        libraries = {folder for folder in folders - ours if not folder.endswith(".dist-info")}
        assert libraries - {"__pycache__"} == {name for name in named if "/" not in name}
        found = {"pyyaml": "yaml", "nvidia_ml_py": "pynvml.py"}  # what the projects of these names install
        names = {folder.partition("-")[0].lower() for folder in folders - ours if folder.endswith(".dist-info")}
        described = {found.get(name, name) for name in names}
        assert described <= libraries

    def test_every_page_that_a_unit_or_a_command_leads_to_is_there(self, nspawn_installed: Nspawn) -> None:
        listed = nspawn_installed.out("dpkg -L vllm-safe").splitlines()
        units = [path for path in listed if re.search(r"systemd/system/[^/]+$", path) and not path.endswith(".d")]
        wanted = set(re.findall(r"man:([\w@.-]+)\((\d)\)", nspawn_installed.out(["cat", *units])))
        wanted |= {(path.rpartition("/")[2], "1") for path in listed if path.startswith(("/usr/bin/", "/usr/sbin/"))}
        assert {f"/usr/share/man/man{section}/{name}.{section}.gz" for name, section in wanted} <= set(listed)

    def test_every_program_that_a_unit_starts_is_there(self, nspawn_installed: Nspawn) -> None:
        listed = nspawn_installed.out("dpkg -L vllm-safe").splitlines()
        units = [path for path in listed if re.search(r"systemd/system/[^/]+\.service$", path)]
        started = set(re.findall(r"^Exec\w+=[-+!@:]*(/usr/\S*vllm-safe\S*)", nspawn_installed.out(["cat", *units]), re.MULTILINE))
        assert started
        assert started <= set(listed)
        scripts = nspawn_installed.out("head -qn1 /usr/lib/vllm-safe/bin/vllm-safe*").splitlines()
        assert set(scripts) == {"#!/usr/lib/vllm-safe/bin/python -I"}

    def test_anybody_may_ask_for_help_and_nobody_for_more(self, nspawn_installed: Nspawn) -> None:
        nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "vllm-safe"]
        assert "Commands:" in nspawn_installed.out([*nobody, "--help"])
        refused = nspawn_installed.run([*nobody, "apply"], check=False)
        assert (refused.returncode, refused.stderr) == (2, "vllm-safe: this command must be run as root\n  sudo vllm-safe apply ...\n")

    def test_completion_is_where_the_shells_look_for_it(self, nspawn_installed: Nspawn) -> None:
        for shell, path in COMPLETION.items():
            assert f"_VLLM_SAFE_COMPLETE={shell}_complete" in nspawn_installed.read(f"/usr/share/{path}")
        nspawn_installed.run(["bash", "-n", f"/usr/share/{COMPLETION['bash']}"])

    def test_modules_of_others_do_not_get_in(self, nspawn_installed: Nspawn) -> None:
        nspawn_installed.write("/srv/evil/sitecustomize.py", "open('/srv/evil/got-in', 'w')")
        nspawn_installed.write("/srv/evil/click.py", "open('/srv/evil/got-in', 'w')")
        nspawn_installed.run("cd /srv/evil && PYTHONPATH=/srv/evil vllm-safe show qwen72b")
        assert not nspawn_installed.exists("/srv/evil/got-in")

    def test_systemd_has_no_complaint_about_the_units(self, nspawn_installed: Nspawn) -> None:
        listed = nspawn_installed.out("dpkg -L vllm-safe")
        units = re.findall(r"systemd/system/([^/\s]+\.(?:service|slice|target))$", listed, re.MULTILINE)
        verify = ["systemd-analyze", "verify", "--man=no", *(unit.replace("@.", "@web.") for unit in units)]
        assert nspawn_installed.run(verify, check=False).stderr == ""

    def test_the_journal_has_no_complaint_about_a_key_that_this_systemd_does_not_know(self, nspawn_installed: Nspawn) -> None:
        nspawn_installed.run(
            "systemctl daemon-reload && systemctl show 'vllm@web' 'vllm-safe-*@web' 'vllm-safe-*' vllm.slice earlyoom >/dev/null"
        )
        complaints = nspawn_installed.out("journalctl --quiet --no-pager _PID=1 | grep -E 'vllm|earlyoom' | grep -E ':[0-9]+: ' || true")
        assert complaints == ""


@pytest.mark.nspawn
def test_the_package_is_small(deb: Path) -> None:
    assert deb.stat().st_size < 800_000


@pytest.mark.nspawn
def test_installing_prints_the_next_steps_once(deb: Path) -> None:
    with Nspawn(network=False) as bed:
        assert bed.install(deb).count(NEXT_STEPS) == 1
        assert NEXT_STEPS not in bed.out("dpkg --install /root/vllm-safe.deb")


@pytest.mark.nspawn
def test_an_upgrade_leaves_models_limits_and_config_alone(serving: Nspawn) -> None:
    before = main_pid(serving, "vllm@web"), main_pid(serving, "earlyoom"), dropins_of_apply(serving)
    serving.run("dpkg --install /root/vllm-safe.deb")
    assert (main_pid(serving, "vllm@web"), main_pid(serving, "earlyoom"), dropins_of_apply(serving)) == before
    assert serving.read("/etc/vllm-safe/config.yaml") == CONFIG
    assert serving.properties("vllm@web", "NeedDaemonReload", "ActiveState") == {"NeedDaemonReload": "no", "ActiveState": "active"}


@pytest.mark.nspawn
def test_a_removal_stops_models_and_undoes_what_was_applied(serving: Nspawn) -> None:
    assert "vllm.slice" in dropins_of_apply(serving)
    serving.run("systemd-run --uid=vllm --slice=vllm.slice sleep 1000")  # as a download runs
    serving.write("/var/lib/vllm-safe/models/a/b/config.json", "{}")
    removal = serving.run("dpkg --remove vllm-safe")
    assert removal.stderr == ""
    assert serving.run("pgrep -u vllm", check=False).stdout == ""
    assert dropins_of_apply(serving) == ""
    assert serving.properties("system.slice", "MemoryMin") == {"MemoryMin": "0"}
    assert serving.out("systemctl is-active earlyoom") == "active"
    assert "--prefer" not in serving.out("tr '\\0' ' ' < /proc/$(systemctl show -P MainPID earlyoom)/cmdline")
    assert not any(serving.exists(path) for path in ("/usr/lib/vllm-safe", "/run/vllm-safe", "/run/vllm", "/usr/bin/vllm-safe"))

    serving.run("dpkg --install /root/vllm-safe.deb")
    assert serving.read("/etc/vllm-safe/config.yaml") == CONFIG
    assert serving.exists("/var/lib/vllm-safe/models/a/b/config.json")
    serving.run("systemctl start vllm@web")


@pytest.mark.nspawn
def test_interrupted_anywhere_the_scripts_can_be_run_again(serving: Nspawn) -> None:
    script = "/var/lib/dpkg/info/vllm-safe"
    serving.run("dpkg --unpack /root/vllm-safe.deb && dpkg --configure --pending")
    for step in ("postinst configure 0.1.0", "prerm upgrade 0.3.0", "postinst abort-upgrade 0.3.0"):
        serving.run(f"{script}.{step} && {script}.{step}")
    assert serving.properties("vllm@web", "ActiveState") == {"ActiveState": "active"}
    for step in ("prerm remove", "postinst abort-remove"):
        serving.run(f"{script}.{step} && {script}.{step}")
    serving.run("vllm-safe --help && systemctl start vllm@web")
    serving.run(f"cp {script}.postrm /root/postrm && dpkg --remove vllm-safe && /root/postrm remove && dpkg --purge vllm-safe")
    serving.run("/root/postrm purge && /root/postrm purge")


@pytest.mark.nspawn
def test_a_removal_works_with_a_broken_configuration(serving: Nspawn) -> None:
    serving.write("/etc/vllm-safe/config.yaml", "models: [")
    serving.run("dpkg --remove vllm-safe")
    assert dropins_of_apply(serving) == ""


def in_chroot(deb: Path, script: str) -> str:
    """Return the output (stdout and stderr) of a shell script in a chroot with Debian as an image builder has it: no /proc, no systemd."""
    mounts = (
        'mount -t tmpfs tmpfs "$1" && cd "$1" && mkdir upper work root && '
        'mount -t overlay overlay -o "lowerdir=$2,upperdir=upper,workdir=work" root && cp "$3" root/root/vllm-safe.deb && '
        'exec chroot root sh -exc "$4"'
    )
    with tempfile.TemporaryDirectory() as folder:
        command = ["unshare", "--mount", "sh", "-c", mounts, "sh", folder, str(trees.tree(trees.CONTAINER)), str(deb), script]
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.nspawn
def test_an_image_can_be_built_without_proc(deb: Path) -> None:
    listing = "find /var/lib/vllm-safe /var/cache/vllm-safe -maxdepth 1 -type d -printf '<%p %m %u %g>\\n'"
    printed = in_chroot(deb, f"test ! -e /proc/self; dpkg --install /root/vllm-safe.deb; {listing}; dpkg --purge vllm-safe; ls /var/lib")
    wanted = re.findall(r"^d (/var/\S+) +0?(\d+) (\w+) (\w+)$", (Path(__file__).parents[2] / TMPFILES).read_text(), re.MULTILINE)
    assert sorted(re.findall(r"^<(\S+) (\d+) (\w+) (\w+)>$", printed, re.MULTILINE)) == sorted(wanted)
    assert "vllm-safe" not in printed.rpartition("ls /var/lib")[2]


@pytest.mark.nspawn
@pytest.mark.parametrize("configured", ["never", "in part"])
def test_one_that_is_not_configured_can_be_removed(deb: Path, configured: str) -> None:
    """Where a hook of the image, or another package, ended the installation."""
    half = "printf '#!/bin/sh\\nexit 1' > /var/lib/dpkg/info/vllm-safe.postinst; ! dpkg --configure vllm-safe; " * (configured == "in part")
    printed = in_chroot(deb, f"dpkg --unpack /root/vllm-safe.deb; {half} dpkg --remove vllm-safe; dpkg --purge vllm-safe; dpkg --audit")
    removal = printed.rpartition("dpkg --remove")[2]
    assert "vllm-safe.prerm" not in removal
    assert "nonexistent" not in removal


@pytest.mark.nspawn
def test_a_purge_after_use_leaves_only_what_is_the_users(deb: Path) -> None:
    with Nspawn(network=False) as bed:
        before = files(bed)
        bed.install(deb)
        bed.write("/etc/vllm-safe/config.yaml", CONFIG.replace("{size: none}", "{size: none, file: /srv/swap}"))
        bed.run("systemctl enable --now vllm@web && vllm-safe check || true")
        for path, label in (("/swapfile", "vllm-safe"), ("/srv/swap", "vllm-safe"), ("/srv/swap.new", "somebody")):
            bed.run(OURS_OFF.format(path, label))
        bed.write("/srv/mine/data", "")
        bed.run(f"ln -s /srv/mine {FOREIGN} && ln -s /srv/mine /var/cache/vllm-safe/link")
        bed.run("install -d -o vllm /var/lib/vllm-safe/models/.partial/a--b /var/lib/vllm-safe/models/c/d")
        bed.write("/var/lib/vllm-safe/models/a/b/config.json", "{}")

        purge = bed.run("dpkg --purge vllm-safe")
        assert "/var/lib/vllm-safe/models" in purge.stderr
        kept = {"/srv/mine", "/srv/mine/data", "/srv/swap.new"}
        kept |= {"/var/lib/vllm-safe" + path for path in ("", "/models", "/models/a", "/models/a/b", "/models/a/b/config.json")}
        assert files(bed) - before == kept
        assert bed.out("find /run -name '*vllm*'") == ""
        assert bed.out("systemctl list-units --all --plain --no-legend --state=loaded 'vllm*'") == ""
        assert bed.out("find /var/lib/systemd -name '*vllm*'") == ""
        assert bed.out("systemctl --failed --plain --no-legend") == ""


@pytest.mark.vm
def test_a_purge_keeps_a_swapfile_that_is_in_use(vm_installed: Virtual) -> None:
    vm_installed.run(OURS_OFF.format("/swapfile", "vllm-safe") + " && swapon /swapfile")
    purge = vm_installed.run("dpkg --purge vllm-safe")
    assert "swapoff /swapfile" in purge.stderr
    assert "/swapfile" in vm_installed.read("/proc/swaps")
    vm_installed.run("dpkg --install /root/vllm-safe.deb && swapoff /swapfile && dpkg --purge vllm-safe")
    assert not vm_installed.exists("/swapfile")
