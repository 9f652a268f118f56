"""The report in a real browser, at both widths and in both themes; and status beside a model that runs.

Its pictures are kept in the folder that VLLM_SAFE_PICTURES names, to be looked at.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.beds.chromium import PROGRAM, Chromium
from tests.beds.nspawn import Nspawn
from tests.builders import killers
from tests.builders.runs import BEGUN, make_run
from vllm_safe.contract.recorded_run import Run
from vllm_safe.diagnose.diagnosis import decide_why
from vllm_safe.report.html_report import render_html

pytestmark = pytest.mark.nspawn

PLANTED = '</script><script>document.title = "planted"</script><img src=http://192.0.2.1/x onerror=alert(1)>'
WINDOWS = [(width, dark) for width in (1280, 400) for dark in (False, True)]
CONFIG = """\
swap: {size: none}
models:
  demo: {command: [/usr/bin/python3, -m, http.server, --bind, 127.0.0.1, "8000"], port: 8000, health: "http://127.0.0.1:8000/"}
"""


def killed(cards: int) -> Run:
    """Forty minutes with everything in them, that end at the memory limit."""
    limit = 12 << 30
    events = [killers.guard(BEGUN + 600)[0], killers.kernel(BEGUN + 2399, limit=True)]
    end = {
        "cause": "exited",
        "reason": PLANTED,
        "result": "oom-kill",
        "exit_code": "killed",
        "exit_status": "KILL",
        "memory_events": {"oom_kill": 3},
    }
    last = {"memory": limit, "anon": limit - (1 << 30), "swap": 115 << 30}
    return make_run(seconds=2400, gpus=cards, last=last, events=events, end=end, log=[PLANTED, "ERROR it is over"])


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    if not shutil.which(PROGRAM):
        pytest.skip("no chromium here (make test installs it)")
    with Chromium() as found:
        yield found


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = Path(os.environ.get("VLLM_SAFE_PICTURES") or tmp_path_factory.mktemp("pictures"))
    place.mkdir(parents=True, exist_ok=True)
    return place


def look(browser: Chromium, path: Path, pictures: Path, name: str) -> dict[str, Any]:
    """Open the page in each window, check what must hold in all, and return what its script was given."""
    for width, dark in WINDOWS:
        browser.open(path, width=width, dark=dark)
        assert browser.complaints == []
        assert browser.evaluate("document.documentElement.scrollWidth") == width, "nothing sticks out to the right"
        data: dict[str, Any] = json.loads(browser.evaluate("document.getElementById('run').textContent"))
        drawn = browser.evaluate(
            "[...document.querySelectorAll('figure')].map(f => [f.id, f.dataset.points, f.querySelectorAll('canvas').length])"
        )
        assert drawn == [[f"plot-{plot['key']}", str(len(data["time"])), 1] for plot in data["plots"]]
        ink = browser.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (ink == "rgb(255, 255, 255)") is not dark
        browser.screenshot(pictures / f"{name}-{width}-{'dark' if dark else 'light'}.png")
    return data


@pytest.mark.parametrize("cards", [0, 8])
def test_the_report_of_a_run_is_drawn_whole_and_its_numbers_are_the_recorders(
    browser: Chromium, tmp_path: Path, pictures: Path, cards: int
) -> None:
    run = killed(cards)
    path = tmp_path / "report.html"
    path.write_text(render_html(run, decide_why(run, "another-boot", BEGUN + 9000)))
    data = look(browser, path, pictures, f"killed-{cards}")
    for key, values in data["columns"].items():
        card, _, field = key.partition(".")
        recorded = [getattr(s.gpus[int(card[3:])], field) if field else getattr(s, key) for s in run.samples]
        assert values == recorded, key
    assert browser.evaluate("document.title") != "planted"
    # A pointer over a plot shows the recorder's numbers of that moment.
    hover = "(() => { const over = document.querySelector('#plot-swap .u-over'); const box = over.getBoundingClientRect();"
    hover += " over.dispatchEvent(new MouseEvent('mousemove', {clientX: box.right - 1, clientY: box.top + 9, bubbles: true}));"
    hover += " return new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() =>"
    hover += " done(document.querySelector('#plot-swap .u-legend').innerText)))); })()"
    assert "115 GiB" in browser.evaluate(hover)


def test_it_is_printed_on_white_paper(browser: Chromium, tmp_path: Path, pictures: Path) -> None:
    run = killed(1)
    path = tmp_path / "report.html"
    path.write_text(render_html(run, decide_why(run, "another-boot", BEGUN + 9000)))
    browser.open(path, width=1280, dark=True)
    browser.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    browser.evaluate("dispatchEvent(new Event('afterprint'))")
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    browser.pdf(pictures / "killed.pdf")
    assert (pictures / "killed.pdf").stat().st_size > 20_000
    assert browser.complaints == []


def test_what_runs_is_shown_and_what_was_recorded_is_drawn(
    nspawn_installed: Nspawn, browser: Chromium, tmp_path: Path, pictures: Path
) -> None:
    bed = nspawn_installed
    bed.write("/etc/vllm-safe/config.yaml", CONFIG)
    assert bed.out("vllm-safe status") == "demo  not started"
    bed.run("systemctl start vllm@demo", check=True, timeout=60)
    bed.wait_for("the state", lambda: json.loads(bed.out("vllm-safe status demo --json"))[0]["phase"] == "ready", timeout=30)
    for user in ("root", "nobody"):
        shown = json.loads(bed.out(f"setpriv --reuid {user} --clear-groups vllm-safe status demo --json"))[0]
        assert (shown["phase"], shown["active"]) == ("ready", "active")
        assert shown["os_memory_pressure"] is not None
        screen = bed.out(f"setpriv --reuid {user} --clear-groups vllm-safe top").splitlines()
        assert [line for line in screen if line.startswith("demo  ready since ")]
        assert "  guard: has not acted" in screen
        assert [line for line in screen if line.startswith("GPU")]
    bed.run("systemctl stop vllm@demo", check=True, timeout=60)
    bed.wait_for("the run's end", lambda: bed.run("ls /var/lib/vllm-safe/runs/demo/*/end.json", check=False).returncode == 0, timeout=60)
    assert "stopped" in bed.out("vllm-safe status demo")
    bed.run("cd /root && vllm-safe report demo -o demo.html", check=True)
    assert bed.out("stat -c '%a %U' /root/demo.html") == "600 root"
    (tmp_path / "demo.html").write_text(bed.read("/root/demo.html"))
    data = look(browser, tmp_path / "demo.html", pictures, "demo")
    lines = bed.out("cat /var/lib/vllm-safe/runs/demo/*/samples.*.jsonl").splitlines()
    assert data["time"] == [json.loads(line)[0] for line in lines if line.strip()]
    assert "Figures" in bed.out("vllm-safe report demo --text")
    assert bed.run("setpriv --reuid nobody --clear-groups vllm-safe report demo", check=False).returncode == 1
