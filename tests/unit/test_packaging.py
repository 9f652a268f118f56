"""The files of the package agree with each other and with the code. Tests that need a built package are in tests/system."""

from __future__ import annotations

import configparser
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest

from tests.conftest import tier_of
from vllm_safe import __version__
from vllm_safe.common import paths
from vllm_safe.contract.state_file import GPU_FOLDER, STATE_FOLDER
from vllm_safe.swap.swapfile_facts import LABEL

ROOT = Path(__file__).parents[2]
DEBIAN = ROOT / "debian"
SCRIPTS = ("postinst", "prerm", "postrm")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
UNITS = sorted(path for path in (ROOT / "systemd").iterdir() if path.suffix in {".service", ".slice", ".socket", ".target"})


def names(requirements: str) -> set[str]:
    """Return the normalised names in lines such as "PyYAML==6.0 --hash=..."."""
    return {match.lower() for match in re.findall(r"^([\w-]+)[=>]=", requirements, re.MULTILINE)}


def unit(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",), comment_prefixes=("#", ";"))
    parser.optionxform = str  # type: ignore[assignment, method-assign] # systemd's keys are case-sensitive
    parser.read(path)
    return parser


def test_the_version_is_the_same_everywhere() -> None:
    version, suite = re.match(r"vllm-safe \((.+?)\) (\w+);", (DEBIAN / "changelog").read_text()).groups()  # type: ignore[union-attr]
    assert version == __version__
    heading = re.search(r"^## (\[.*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE).group(1)  # type: ignore[union-attr]
    assert re.fullmatch(r"\[Unreleased\]" if suite == "UNRELEASED" else rf"\[{version}\] - \d{{4}}-\d\d-\d\d", heading)


def test_what_a_released_version_says_is_never_edited() -> None:
    """Each section of CHANGELOG.md is that of the release: changes go to a version of their own."""
    released = re.split(r"(?m)^(?=## \[\d)", (ROOT / "CHANGELOG.md").read_text())[1:]
    digests = {section[4 : section.index("]")]: hashlib.sha256(section.strip().encode()).hexdigest()[:16] for section in released}
    assert digests == {"0.2.0": "f393ee5fe5910b82", "0.1.0": "25e891e4cdff635c"}


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org", "-c", "init.defaultBranch=main"]
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "GIT_COMMITTER_DATE": "1795910399 +0100"}  # 2026-11-28 23:59:59 UTC
    return subprocess.run(["git", *who, *words], cwd=folder, env=environment, check=True, capture_output=True, text=True).stdout.strip()


class TestVersion:
    """`debian/version` in a repository of its own, whose 9.9.9 comes after 9.9.8."""

    @pytest.fixture
    def tree(self, tmp_path: Path) -> Path:
        tree = tmp_path / "tree"
        (tree / "debian").mkdir(parents=True)
        for name in ("debian/version", "debian/commit", ".gitattributes"):
            shutil.copy(ROOT / name, tree / name)
        (tree / "debian/commit").write_text("$Format:%ct %H archived$\n")  # a tree that `make deb` has copied has another
        git(tree, "init", "--quiet")
        self.enter(tree, "UNRELEASED")
        return tree

    @staticmethod
    def enter(tree: Path, suite: str) -> None:
        (tree / "debian/changelog").write_text(f"vllm-safe (9.9.9) {suite}; urgency=medium\n\nvllm-safe (9.9.8) bookworm; urgency=medium\n")
        git(tree, "add", "--all")
        git(tree, "commit", "--quiet", "--message", suite)

    @staticmethod
    def built(tree: Path) -> str:
        return subprocess.run([tree / "debian/version"], check=True, capture_output=True, text=True).stdout.strip()

    def test_on_the_way_to_a_release(self, tree: Path) -> None:
        head = git(tree, "rev-parse", "HEAD")[:7]
        assert self.built(tree) == f"9.9.9~git20261128.{head}"
        (tree / "new").write_text("")
        assert self.built(tree) == f"9.9.9~git20261128.{head}+dirty"

    def test_a_release_and_what_comes_after_it(self, tree: Path) -> None:
        self.enter(tree, "bookworm")
        assert self.built(tree) == "9.9.9"
        (tree / "new").write_text("")
        git(tree, "add", "new")
        git(tree, "commit", "--quiet", "--message", "new")
        assert self.built(tree) == f"9.9.9+git20261128.{git(tree, 'rev-parse', 'HEAD')[:7]}"

    @pytest.mark.parametrize("suite", ["UNRELEASED", "bookworm"])
    def test_an_archive_says_what_its_commit_says(self, tree: Path, suite: str, tmp_path: Path) -> None:
        if suite != "UNRELEASED":
            self.enter(tree, suite)
        (tmp_path / "archive").mkdir()
        git(tree, "archive", "--output", str(tmp_path / "archive.tar"), "HEAD")
        subprocess.run(["tar", "-xf", tmp_path / "archive.tar"], cwd=tmp_path / "archive", check=True)
        assert self.built(tmp_path / "archive") == self.built(tree)

    def test_without_git_and_a_commit(self, tree: Path) -> None:
        shutil.rmtree(tree / ".git")
        assert self.built(tree) == "9.9.9~dev"

    def test_a_repository_around_the_tree_is_not_asked(self, tree: Path) -> None:
        inner = tree / "inner"
        (inner / "debian").mkdir(parents=True)
        for name in ("version", "commit", "changelog"):
            shutil.copy(tree / "debian" / name, inner / "debian" / name)
        assert self.built(inner) == "9.9.9~dev"

    def test_apt_sorts_them(self) -> None:
        versions = ["0.2.0", "0.2.0+git20261128.ffffff", "0.3.0~dev", "0.3.0~git20261128.1234567", "0.3.0~git20261128.1234567+dirty"]
        versions += ["0.3.0~git20261129.0000000", "0.3.0", "0.3.0+git20261201.1234567", "0.3.1~git20261202.1234567", "0.3.1"]
        for older, newer in pairwise(versions):
            subprocess.run(["dpkg", "--compare-versions", older, "lt", newer], check=True)


def test_every_data_file_is_installed() -> None:
    patterns = [line.split()[0] for line in (DEBIAN / "install").read_text().splitlines()]
    for pattern in patterns:
        assert list(ROOT.glob(pattern)), f"debian/install: {pattern} matches nothing"
    installed = {path for pattern in patterns for match in ROOT.glob(pattern) for path in (match, *match.rglob("*"))}
    data = {path for folder in ("systemd", "etc") for path in (ROOT / folder).rglob("*") if path.is_file()}
    assert data - installed == set()


def test_only_the_protection_is_enabled_by_the_package() -> None:
    enabled = {path.name for path in UNITS if unit(path).has_section("Install")}
    by_a_person = {"vllm@.service", "vllm-on-demand.service", "vllm-gateway.service"}
    assert enabled == {"vllm-safe-protect.service", *by_a_person}
    postinst = (DEBIAN / "postinst").read_text()
    assert set(re.findall(r"deb-systemd-helper .*?([\w@-]+\.service)", postinst)) == {"vllm-safe-protect.service"}


def test_installing_starts_and_downloads_nothing() -> None:
    """Only an upgrade restarts: what runs, and what watches a model."""
    script = (DEBIAN / "postinst").read_text()
    upgrade = re.search(r'^    if \[ "\$1" = configure \] && \[ -n "\$2" \]; then\n(.*?)^    fi$', script, re.MULTILINE | re.DOTALL)
    assert upgrade is not None
    restarted = re.findall(r"invoke (.*) \|\|", upgrade[1])
    watchers = "vllm-safe-guard.service 'vllm-safe-record@*.service'"
    assert restarted == ["try-reload-or-restart vllm-on-demand.service", "try-restart vllm-gateway.service", f"try-restart {watchers}"]
    commands = re.sub(r"cat <<'END'.*?^END$|^\s*#.*?$", "", script.replace(upgrade[0], ""), flags=re.MULTILINE | re.DOTALL)
    assert not re.search(r"invoke|\b(start|restart|stop|enable --now|curl|wget|pip|apt|swap|vllm-safe apply)\b", commands)


def test_the_configuration_is_no_conffile() -> None:
    """The package ships nothing in /etc: dpkg would ask about it at an upgrade."""
    assert not re.search(r"^\S+ /?etc\b", (DEBIAN / "install").read_text(), re.MULTILINE)


def test_an_upgrade_stops_nothing() -> None:
    upgrade = re.search(r"^\s+remove\)(.*?);;(.*?)^esac", (DEBIAN / "prerm").read_text(), re.MULTILINE | re.DOTALL)
    assert upgrade is not None
    assert "stop" in upgrade[1]
    assert re.search(r"upgrade [^)]*\) ;;", upgrade[2])


@pytest.mark.parametrize("script", SCRIPTS)
def test_maintainer_scripts_refuse_what_they_do_not_know(script: str) -> None:
    outcome = subprocess.run(["sh", DEBIAN / script, "frobnicate"], capture_output=True, text=True, check=False)
    assert outcome.returncode == 1
    assert "frobnicate" in outcome.stderr


@pytest.mark.parametrize("action", ["upgrade", "failed-upgrade", "abort-install", "abort-upgrade", "disappear"])
def test_postrm_leaves_an_upgrade_alone(action: str) -> None:
    traced = subprocess.run(["sh", "-x", DEBIAN / "postrm", action, "0.0.9"], capture_output=True, text=True, check=True)
    assert traced.stderr.splitlines() == ["+ set -e"]


def test_a_purge_outlives_a_disk_that_is_mounted_in_our_folders(tmp_path: Path) -> None:
    """Check that the function runs to its end although `rm`, `find` and `rmdir` fail, as they do for a mount point."""
    body = re.search(r"^delete_state\(\) \{\n.*?^\}\n", (DEBIAN / "postrm").read_text(), re.MULTILINE | re.DOTALL)
    assert body is not None
    stubs = "rm() { case $* in *-rf*) return 1 ;; esac; }\nfind() { return 1; }\nrmdir() { echo busy >&2; return 1; }\n"
    (tmp_path / "lib/vllm-safe").mkdir(parents=True)
    script = f"set -e\n{stubs}{body[0].replace('/var/', f'{tmp_path}/')}delete_state\necho done\n"
    outcome = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert outcome.stdout == "done\n"
    assert "not everything" in outcome.stderr
    assert outcome.stderr.endswith("busy\n")


def test_the_scripts_name_the_places_that_the_code_names() -> None:
    postrm = (DEBIAN / "postrm").read_text()
    for path in (
        paths.STATE,
        paths.CACHE,
        paths.ENGINES,
        paths.HOME,
        paths.MODELS,
        paths.RUNS,
        paths.EARLYOOM_ENV,
        paths.RUN,
        paths.SERVICE_RUN,
    ):
        assert re.search(rf"{path}[\s;]", postrm), path
    assert f"!= {LABEL} ]" in postrm


def test_tmpfiles_make_the_folders_that_the_code_names() -> None:
    lines = (ROOT / "systemd/tmpfiles.d/vllm-safe.conf").read_text().splitlines()
    made = {Path(line.split()[1]) for line in lines if line and not line.startswith("#")}
    assert made >= {
        paths.STATE,
        paths.CACHE,
        paths.ENGINES,
        paths.HOME,
        paths.MODELS,
        paths.RUNS,
        paths.RUN,
        paths.CREDENTIALS,
        paths.STARTS,
        STATE_FOLDER,
        GPU_FOLDER,
    }


def test_what_is_shipped_is_what_the_code_needs_and_is_named_in_the_copyright_file() -> None:
    shipped = names((DEBIAN / "requirements.txt").read_text())
    assert shipped == {re.split(r"[>=]", text)[0].lower() for text in PROJECT["project"]["dependencies"]}
    modules = set(re.findall(r"site-packages/([a-z]+)(?:/\*|\.py)", (DEBIAN / "copyright").read_text()))
    assert {{"pyyaml": "yaml", "nvidia-ml-py": "pynvml"}.get(name, name) for name in shipped} == modules


@pytest.mark.parametrize("file", ["requirements.txt", "build-requirements.txt"])
def test_every_requirement_has_hashes(file: str) -> None:
    text = (DEBIAN / file).read_text().replace("\\\n", " ")
    pinned = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert pinned
    assert all(re.fullmatch(r"[\w-]+==[\w.]+( +--hash=sha256:[0-9a-f]{64})+", line.strip()) for line in pinned)


def test_every_python_that_the_package_allows_finds_its_modules() -> None:
    linked = re.search(r"for minor in ([\d ]+);", (DEBIAN / "rules").read_text())
    control = (DEBIAN / "control").read_text()
    lowest, beyond = re.search(r"python3 \(>= 3\.(\d+)\),\n python3-venv,\nStand", control), re.search(r"python3 \(<< 3\.(\d+)\)", control)
    assert linked is not None
    assert lowest is not None
    assert beyond is not None
    assert [int(minor) for minor in linked[1].split()] == list(range(int(lowest[1]), int(beyond[1])))
    assert PROJECT["project"]["requires-python"] == f">=3.{lowest[1]}"


@pytest.mark.parametrize("script", PROJECT["project"]["scripts"])
def test_console_scripts_lead_somewhere(script: str) -> None:
    module, _, function = PROJECT["project"]["scripts"][script].partition(":")
    assert callable(getattr(import_module(module), function))


def test_a_skipped_test_of_a_required_tier_fails(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text((ROOT / "tests/conftest.py").read_text())
    (tmp_path / "test_skips.py").write_text(
        "import pytest\n"
        "@pytest.mark.vm\ndef test_vm(): pytest.skip('no KVM')\n"
        "@pytest.mark.nspawn\ndef test_nspawn(): pytest.skip('no root')\n"
        "def test_unit(): pytest.skip('no mood')\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", tmp_path]
    outcome = subprocess.run(command, env={"VLLM_SAFE_REQUIRE": "vm unit"}, capture_output=True, text=True, check=False)
    assert "2 failed, 1 skipped" in outcome.stdout
    assert "no KVM" in outcome.stdout


def test_the_tier_of_a_test_is_its_bed(request: pytest.FixtureRequest) -> None:
    assert tier_of(request.node) == "unit"


@pytest.mark.parametrize("file", ["lintian-overrides", "source/lintian-overrides"])
def test_every_override_has_its_reason(file: str) -> None:
    lines = (DEBIAN / file).read_text().splitlines()
    assert all(lines[number - 1].startswith("# ") for number, line in enumerate(lines) if not line.startswith("#"))
    assert lines[0].startswith("# ")


def test_nothing_is_tied_to_a_machine() -> None:
    """The code uses the kernel by name, or by numbers that are the same on amd64 and arm64 (linux/fs.h, where a long has 64 bits)."""
    assert "\nArchitecture: amd64 arm64\n" in (DEBIAN / "control").read_text()
    psutil = re.search(r"^psutil==.*(?:\n +--hash.*)*", (DEBIAN / "requirements.txt").read_text(), re.MULTILINE)
    assert psutil is not None
    assert psutil[0].count("--hash=") == 2  # its wheels for the two
    tied = re.compile(r"amd64|x86_64|aarch64|arm64|/lib64|linux-gnu")
    # The first two choose vLLM's wheels by architecture, the others the number of a system call.
    names = ("engine/engine_decision.py", "engine/requirement_locks.py", "common/libc.py", "engine/engine_folder.py")
    choosing = {ROOT / "vllm_safe" / name for name in names}
    assert {path for path in (ROOT / "vllm_safe").rglob("*.py") if tied.search(path.read_text())} <= choosing
    for name in ("uv", "vllm"):  # not the CPU build, which is for trying things out
        environments = (ROOT / f"vllm_safe/engine/locks/{name}.txt").read_text().partition("\n")[0]
        assert environments.count("-x86_64") == environments.count("-aarch64") > 0, name


def test_a_purge_needs_nothing_of_what_the_removal_took() -> None:
    postrm = (DEBIAN / "postrm").read_text()
    assert "/usr/lib/vllm-safe" not in postrm
    assert f"{paths.STATE}/runs" in postrm
