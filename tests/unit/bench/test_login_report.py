"""The table and the picture of the login benchmark, from samples that were made up."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.bench.login import __main__, report
from tests.bench.login.summary import Run, Summary

BENCH = Path(__file__).parents[2] / "bench"


def load(folder: Path) -> list[Run]:
    """Read the raw samples in a folder."""
    return list(Summary.load(folder.parent / "summary.jsonl", folder.name).runs.values())


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    """Return an idle machine with logins of 1 s, and one that stood still for 9 s."""
    idle = [f"{at},ssh,1.0" for at in range(10)] + ["10,end,0", "11,bystanders,0", "11,ssh,1.0"]
    hog = [
        "0,ssh,1.0",
        "1,ssh,9.0",
        "9,alive,1",
        "5,progress,100",
        "9,progress,600",
        "10,end,0",
        "11,ssh,4.0",
        "15,ssh,1.5",
        "16,failed ssh,0.1",
        "17,bystanders,2",
    ]
    (tmp_path / "idle.-.150.1.csv").write_text("\n".join(idle))
    (tmp_path / "nothing.anonymous.150.1.csv").write_text("\n".join(hog))
    (tmp_path / ".torn.anonymous.150.1.csv").write_text("1,ss")
    return load(tmp_path)


def test_a_row_for_each_set_up(runs: list[Run]) -> None:
    head, *rows = (dict(zip(report.HEAD, row, strict=True)) for row in report.table(runs))
    assert list(head) == list(head.values())
    assert [(row["set-up"], row["hog"]) for row in rows] == [("idle", "anonymous"), ("nothing", "anonymous")]
    assert rows[0]["isol"] == "100.0%"
    # Of ten people who log in, a second apart, eight wait for more than 2 s.
    assert rows[1]["isol"] == "30.0%"
    assert [rows[1][name] for name in ("ssh worst", "killed", "back", "hog/s", "alive")] == ["9.0/9.0", "2", "6", "100", "1/1"]


def test_a_login_that_failed_is_no_quick_one(runs: list[Run]) -> None:
    (run,) = (run for run in runs if run.cell.setup == "nothing")
    assert [login.felt for login in run.after()] == [4.0, 1.5, 120.0]


def test_a_login_is_compared_with_idle_ones_of_its_own_round(tmp_path: Path) -> None:
    for number, usual in ((1, 1.0), (2, 3.0)):
        (tmp_path / f"idle.-.50.{number}.csv").write_text(f"0,ssh,{usual}\n10,end,0\n")
    for number in (1, 2, 3):
        (tmp_path / f"plan.leak.50.{number}.csv").write_text("0,ssh,5.0\n10,end,0\n11,ssh,1\n")
    runs = load(tmp_path)
    assert report._idle(runs, [run for run in runs if run.cell.setup == "plan"]) == [1.0, 3.0, 3.0]


def test_a_machine_that_could_not_be_told_to_end_the_hog_is_a_result(tmp_path: Path) -> None:
    (tmp_path / "idle.-.150.1.csv").write_text("0,ssh,1.0\n10,end,0\n10,alive,0\n11,bystanders,0\n")
    (tmp_path / "plan.forkbomb.150.1.csv").write_text("0,ssh,1.0\n5,failed ssh,20.0\n30,end,0\n31,failed ssh,60\n")
    (tmp_path / "plan.forkbomb.150.2.csv").write_text("0,ssh,1.0\n30,end,0\n30,alive,1\n31,ssh,1.0\n32,bystanders,3\n")
    runs = load(tmp_path)
    _, idle, plan = (dict(zip(report.HEAD, row, strict=True)) for row in report.table(runs))
    assert (plan["alive"], plan["killed"], plan["back"], plan["ssh worst"]) == ("1/1 1 stuck", "3", ">", "60.5/120.0")
    assert "stuck" in report.picture([run for run in runs if run.cell.round == 1], "forkbomb", 150)
    assert idle["alive"] == "0/1"


def test_the_picture_has_a_bar_for_each_login(runs: list[Run]) -> None:
    drawn = ET.fromstring(report.picture(runs, "anonymous", 150))  # noqa: S314 - our own
    bars = [bar.get("fill") for bar in drawn if bar.tag.endswith("rect")]
    assert bars.count(report.COLOURS[False]) == 3
    assert bars.count(report.COLOURS[True]) == 13


def test_progress_is_compared_with_the_plan(tmp_path: Path) -> None:
    for setup, done in {"plan": 200, "vllm-safe": 150}.items():
        lines = ["0,progress,0", "10,progress,9000", f"15,progress,{9000 + done}", "20,alive,1", "20,end,0"]
        (tmp_path / f"{setup}.leak.150.1.csv").write_text("\n".join(lines))
    _, *rows = (dict(zip(report.HEAD, row, strict=True)) for row in report.table(load(tmp_path)))
    assert {row["set-up"]: (row["hog/s"], row["of plan"]) for row in rows} == {"plan": ("20", "100%"), "vllm-safe": ("15", "75%")}


def test_the_picture_shows_the_middle_round_and_whether_the_model_lived(tmp_path: Path) -> None:
    for number, worst in enumerate((3, 30, 9), start=1):
        lines = [f"0,ssh,{worst}", "40,alive,0", "40,end,0"]
        (tmp_path / f"oomd.leak.150.{number}.csv").write_text("\n".join(lines))
    assert "longest 9 s, model killed" in report.picture(load(tmp_path), "leak", 150)


def test_samples_of_two_kinds_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["login", "--setups", "idle", "--rounds", "0", "--out", str(tmp_path)]
    (tmp_path / "login-raw").mkdir()
    (tmp_path / "login-raw/idle.-.150.1.csv").write_text("1,ssh,1.0\n2,end,0\n3,bystanders,0\n")
    monkeypatch.setattr("sys.argv", [*options, "--seconds", "40"])
    assert __main__.main() == 0
    monkeypatch.setattr("sys.argv", [*options, "--seconds", "10"])
    with pytest.raises(SystemExit, match="--fresh"):
        __main__.main()
    monkeypatch.setattr("sys.argv", [*options, "--report", "--seconds", "10"])
    assert __main__.main() == 0
    assert "each hog runs for 40 s" in (tmp_path / "RESULTS.md").read_text()
    assert (tmp_path / "login-raw/idle.-.150.1.csv").exists()


def test_without_the_raw_samples_the_report_is_the_same(runs: list[Run], tmp_path: Path) -> None:
    """And what is of another kind stays in the file, as does why a cell could not be measured."""
    folder = tmp_path / "kept/login-raw"
    shutil.copytree(tmp_path, folder, ignore=shutil.ignore_patterns("kept"))
    summary = Summary.load(tmp_path / "kept/summary.jsonl", "login-raw")
    summary.miss(replace(runs[0].cell, round=9), "no machine")
    summary.save()
    Summary.load(summary.path, "another").save()
    shutil.rmtree(folder)
    again = Summary.load(summary.path, "login-raw")
    assert report.table(list(again.runs.values())) == report.table(runs)
    assert report.picture(list(again.runs.values()), "anonymous", 150) == report.picture(runs, "anonymous", 150)
    assert [(cell.round, why) for cell, why in again.missed.items()] == [(9, "no machine")]


def test_the_results_are_what_the_summary_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(BENCH / "summary.jsonl", tmp_path)
    monkeypatch.setattr("sys.argv", ["login", "--report", "--out", str(tmp_path)])
    assert __main__.main() == 0
    for name in ("RESULTS.md", "login.svg", "summary.jsonl"):
        assert (tmp_path / name).read_text() == (BENCH / name).read_text(), "run: python -m tests.bench.login --report"
