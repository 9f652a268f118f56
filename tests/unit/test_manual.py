"""The manual compared with the commands, the table of settings and the units; and that groff accepts it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from tests.builders.runs import make_run
from vllm_safe.cli.entry import COMMANDS
from vllm_safe.cli.main import cli
from vllm_safe.common.errors import EXIT_IDLE
from vllm_safe.common.paths import RUNS
from vllm_safe.common.sizes import MIB
from vllm_safe.config.profiles import PROFILES
from vllm_safe.config.settings import INNER_PORTS, SECTIONS, Model, settings_of
from vllm_safe.decide.restarts import RESTARTS, WINDOW
from vllm_safe.guard.blame import AFTER_THAW
from vllm_safe.guard.pressure_watch import LOW
from vllm_safe.guard.readings import SCARCE
from vllm_safe.launch.load_progress import RATES, STEPS
from vllm_safe.launch.server_end import LOADING_GRACE
from vllm_safe.record.prometheus import render_metrics
from vllm_safe.record.run_store import MOST_RUNS

ROOT = Path(__file__).parents[2]
PAGES = ("vllm-safe.1", "vllm-safe.yaml.5", "vllm@.service.8", "vllm-safe-guard.8")
MAKE = [sys.executable, "-I", "-B", str(ROOT / "debian/make-manual.py")]


def make(folder: Path, epoch: int = 1795456800) -> Path:
    subprocess.run([*MAKE, str(folder)], env={"SOURCE_DATE_EPOCH": str(epoch), "TZ": "Asia/Tokyo"}, check=True)
    for page in ("vllm@.service.8", "vllm-safe-guard.8"):
        shutil.copy(ROOT / "debian" / page, folder)
    return folder


@pytest.fixture(scope="module")
def manual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("manual"))


def plain(page: Path) -> str:
    """Return the text of a page without its markup."""
    text = re.sub(r"\\f[BIR]|\\[&:%]", "", page.read_text())
    for written, sign in ((r"\-", "-"), (r"\ ", " "), (r"\(aq", "'"), (r"\(dq", '"'), (r"\(ha", "^"), (r"\e", "\\")):
        text = text.replace(written, sign)
    return text


def commands(group: click.Command = cli, name: str = "vllm-safe") -> dict[str, click.Command]:
    if not isinstance(group, click.Group):
        return {name: group}
    context = click.Context(group)
    parts = {part: group.get_command(context, part) for part in group.list_commands(context)}
    return {full: command for part, sub in parts.items() if sub for full, command in commands(sub, f"{name} {part}").items()}


def test_every_command_is_there_with_each_of_its_options(manual: Path) -> None:
    text = plain(manual / "vllm-safe.1")
    assert {name.split()[1] for name in commands()} == set(COMMANDS)
    for name, command in commands().items():
        usage = re.search(rf"^{name}(?: .*)?$", text, re.MULTILINE)
        assert usage, name
        assert (command.help or "").split("\n")[0].replace("`", "") in text
        for parameter in command.params:
            words = parameter.opts if isinstance(parameter, click.Option) else [(parameter.name or "").upper()]
            for word in words:
                assert re.search(rf"[\[ |]{word}(?![\w-])", usage[0]), f"{name} {word}"
            if isinstance(parameter, click.Option):
                tag = " ".join(filter(None, [", ".join(words), parameter.metavar]))
                assert f"\n{tag}\n{parameter.help}" in text, f"{name} {tag}"


def test_every_setting_is_there_with_its_explanation_and_its_default(manual: Path) -> None:
    text = plain(manual / "vllm-safe.yaml.5")
    for title, section in {**SECTIONS, "models": Model}.items():
        found = re.search(rf"^\.SH SECTION {title}\n(.*?)^\.SH", text, re.MULTILINE | re.DOTALL)
        assert found, title
        for row in settings_of(section):
            assert f".TP\n{row.name}:\n{row.doc.replace('`', '').replace('*', '')}" in found[1].replace("*", ""), row.name
            value = f"Example: {row.name}: {row.example}" if row.example else f"Default: {row.kind.write(row.default)}"
            assert value in found[1], row.name


def test_every_profile_is_there_with_all_that_it_sets(manual: Path) -> None:
    text = plain(manual / "vllm-safe.yaml.5")
    for profile in PROFILES.values():
        assert f".TP\n{profile.name}\n{profile.reason}" in text
        for name in (*profile.env, *profile.args):
            assert name in text


def test_every_metric_is_there_and_where_it_is_recorded(manual: Path) -> None:
    text = plain(manual / "vllm-safe.1")
    run = make_run(gpus=2)
    names = set(re.findall(r"^(\w+)\{", render_metrics(run.start, run.samples[-1]), re.MULTILINE))
    assert len(names) > 10
    assert names <= set(re.findall(r"^vllm_safe_model_\w+$", text, re.MULTILINE))
    assert f"the last {MOST_RUNS} of each" in text
    assert f"{RUNS}\n" in text


def test_what_moves_is_what_the_page_says(manual: Path) -> None:
    text = " ".join(plain(manual / "vllm@.service.8").split())
    assert (STEPS.read, STEPS.mapped, STEPS.resident, STEPS.gpu, STEPS.cpu) == (MIB, 4 * MIB, 4 * MIB, 16 * MIB, 0.5)
    assert {RATES.read, RATES.mapped, RATES.resident, RATES.gpu} == {64 << 10}
    assert RATES.cpu == 0.03
    for said in ("more than 1 MiB, and 64 KiB more", "more than 4 MiB, and", "more than 16 MiB, and", "half a second, and 3 % of a core"):
        assert said in text


def test_the_unit_does_what_its_page_says(manual: Path) -> None:
    text = " ".join(plain(manual / "vllm@.service.8").split())
    unit = (ROOT / "systemd/vllm@.service").read_text()
    assert "again after 30 seconds" in text
    assert "\nRestartSec=30\n" in unit
    assert "(exit code 2) is not tried again" in text
    assert "\nRestartPreventExitStatus=2 3\n" in unit
    assert f"ends with exit code {EXIT_IDLE} when" in text
    assert f"\nSuccessExitStatus={EXIT_IDLE}\n" in unit
    assert f"that listens {INNER_PORTS} ports higher" in text
    assert "(OOMPolicy=kill)" in text
    assert "\nOOMPolicy=kill\n" in unit
    assert "After three automatic restarts the model stays down: three within an hour," in text
    assert (RESTARTS, WINDOW) == (3, 3600)
    assert f"at most {LOADING_GRACE:.0f} seconds" in text


def test_the_guard_does_what_its_page_says(manual: Path) -> None:
    text = " ".join(plain(manual / "vllm-safe-guard.8").split())
    assert "(exit code 78, after which systemd does not try again)" in text
    assert "\nRestartPreventExitStatus=78\n" in (ROOT / "systemd/vllm-safe-guard.service").read_text()
    assert "less than a tenth of the RAM" in text
    assert SCARCE == 0.1
    assert "for three seconds more" in text
    assert AFTER_THAW == 3
    assert "(less than a twentieth of each)" in text
    assert LOW == 0.05


def test_the_units_lead_to_pages_that_there_are() -> None:
    named = {page for unit in (ROOT / "systemd").glob("vllm*.*") for page in re.findall(r"man:(\S+)\((\d)\)", unit.read_text())}
    assert named == {("vllm-safe", "1"), ("vllm@.service", "8"), ("vllm-safe-guard", "8")}


def test_the_package_has_all_pages() -> None:
    rule = re.search(r"dh_installman .*", (ROOT / "debian/rules").read_text())
    assert rule
    assert rule[0].endswith("$(wildcard debian/*.[1-9])")
    written = {path.name for path in (ROOT / "debian").glob("*.[1-9]")}
    assert {"vllm-safe.1", "vllm-safe.yaml.5"} | written == set(PAGES)


def test_it_is_the_same_each_time_and_has_the_changelogs_date(manual: Path, tmp_path: Path) -> None:
    again = make(tmp_path)
    for page in PAGES:
        assert (again / page).read_bytes() == (manual / page).read_bytes()
    assert ".TH vllm-safe 1 2026-11-23 " in plain(manual / "vllm-safe.1")
    assert ".TH vllm-safe 1 1970-01-01 " in plain(make(tmp_path, epoch=0) / "vllm-safe.1")


@pytest.mark.parametrize("page", PAGES)
def test_groff_has_no_complaint(page: str, manual: Path) -> None:
    if not shutil.which("groff"):
        pytest.skip("no groff on this machine to read the manual")
    read = subprocess.run(["groff", "-man", "-Tutf8", "-ww", "-z", manual / page], capture_output=True, text=True, check=True)
    assert read.stderr == ""


def test_what_looks_like_markup_comes_out_as_it_is(tmp_path: Path) -> None:
    if not shutil.which("groff"):
        pytest.skip("no groff on this machine to read the manual")
    hostile = r""".TH x \n(.y 'quoted' "twice" `tick` ^a~b --dash \fBbold"""
    code = f"import runpy; print(runpy.run_path({MAKE[-1]!r})['literal']({hostile!r}))"
    line = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    (tmp_path / "x.1").write_text(f".TH x 1\n.nf\n{line}")
    shown = subprocess.run(["groff", "-man", "-Tutf8", "-P-c", tmp_path / "x.1"], capture_output=True, text=True, check=True).stdout
    assert hostile in shown
