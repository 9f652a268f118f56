"""Tests of the report for a terminal."""

from __future__ import annotations

import pytest

from tests.builders.runs import BEGUN, make_run
from vllm_safe.contract.recorded_run import Event, Run
from vllm_safe.diagnose.diagnosis import decide_why
from vllm_safe.report.text_report import _thinned, render_text


def lines(run: Run, *, colours: bool = False) -> list[str]:
    return list(render_text(run, decide_why(run, "another-boot", BEGUN + 1000), str, colours=colours))


def test_it_fits_80_columns_and_has_no_colour_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    found = lines(
        make_run(
            gpus=8,
            seconds=400,
            end={"cause": "exited", "reason": "x" * 300, "result": "oom-kill"},
            events=[Event(BEGUN + 3, "guard", "y " * 90)],
        )
    )
    log = found.index("Last log lines")
    assert max(map(len, found[:log])) <= 80
    assert "\x1b" not in "\n".join(found)
    monkeypatch.setenv("FORCE_COLOR", "1")  # plotille looks for a terminal itself
    assert any("\x1b[" in line for line in lines(make_run(), colours=True))


def test_what_the_server_prints_steers_no_terminal_and_tells_no_key() -> None:
    found = "\n".join(lines(make_run(log=["\x1b]0;owned\x07", "HF_TOKEN=hf_abcdefghijklmnopqrst"], phases=("\x1b[2J", "ready"))))
    assert "\x1b" not in found
    assert "hf_abc" not in found
    assert "HF_TOKEN=[removed]" in found


def test_the_parts_are_there_in_order() -> None:
    found = lines(make_run(end={"cause": "stopped", "result": "success"}))
    places = [
        next(n for n, line in enumerate(found) if line.startswith(title))
        for title in ("Memory of the model", "Swap", "Figures", "Events", "Last log lines")
    ]
    assert places == sorted(places)
    assert any("Peak memory of the model, in total" in line and "of 12.0 GiB" in line for line in found)


def test_a_run_without_samples_has_a_text() -> None:
    assert "Figures" in lines(make_run()._replace(samples=()))


AXIS = "-----------|"


@pytest.mark.parametrize("seconds", [1, 3, 4])
def test_a_run_too_short_for_lines_has_figures_and_no_empty_plots(seconds: int) -> None:
    run = make_run(seconds=seconds, phases=("starting",), gpus=2, end={"cause": "exited", "result": "exit-code"})
    found = lines(run)
    assert len(run.samples) == seconds
    assert not [line for line in found if line.startswith(AXIS)]
    note = next(place for place, line in enumerate(found) if line.startswith("Not drawn (fewer than 5 samples): Memory of the model;"))
    assert note < found.index("Figures")
    assert any("Peak memory of the model, in total" in line for line in found)


def test_what_was_0_all_the_time_is_no_plot() -> None:
    run = make_run()
    still = run._replace(samples=tuple(sample._replace(disk_read=0.0, disk_write=0.0, swap=0, swap_free=0) for sample in run.samples))
    found = lines(still)
    assert "Not drawn (always 0): Swap; Disks of the machine" in found
    assert "Disks of the machine" not in found
    assert len([line for line in lines(run) if line.startswith(AXIS)]) == len([line for line in found if line.startswith(AXIS)]) + 2


def test_what_is_known_of_a_moment_only_is_no_plot() -> None:
    run = make_run(seconds=60, phases=("loading",), last={"tokens": 3})
    found = lines(run._replace(samples=(*run.samples[:-4], *(sample._replace(tokens=None) for sample in run.samples[-4:]))))
    assert "Not drawn (fewer than 5 samples): Tokens generated since the start" in found
    assert any(line.startswith("Memory of the model;") for line in found)


def test_no_peak_of_a_long_run_is_lost_between_the_dots() -> None:
    points = [(float(at), 9.0 if at == 4711 else 1.0) for at in range(20_000)]
    thinned = _thinned(points)
    assert (4711.0, 9.0) in thinned
    assert thinned == sorted(thinned)
    assert len(thinned) < 600
