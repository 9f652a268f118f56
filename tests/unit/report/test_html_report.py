"""Tests of the HTML report: its numbers are the recorder's, and data of a run is never markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.builders import killers
from tests.builders.runs import BEGUN, make_run
from vllm_safe.contract.recorded_run import Event, Run
from vllm_safe.contract.state_file import PHASES
from vllm_safe.diagnose.diagnosis import decide_why
from vllm_safe.diagnose.verdict import Evidence, SettingChange, Verdict
from vllm_safe.report.html_report import MARK, render_html

ENDED = {"cause": "exited", "reason": "the server ended by itself", "result": "oom-kill", "memory_events": {"oom_kill": 3}}
GUARDED = [killers.guard(BEGUN + 10)[0], killers.kernel(BEGUN + 38, limit=True)]


class Seen(HTMLParser):
    """The elements of a page as a browser parses them, and the text of its scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self._raw = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._raw = tag in {"script", "style"}
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._raw = self._raw and tag not in {"script", "style"}

    def handle_data(self, data: str) -> None:
        if self._raw and self.tags[-1][0] == "script":
            self.scripts[-1] += data
        elif not self._raw:
            self.words.append(data)


def page(run: Run) -> str:
    return render_html(run, decide_why(run, "another-boot", BEGUN + 1000))


def embedded(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Seen(text).scripts[0])
    return found


def test_every_number_that_is_drawn_is_the_recorders() -> None:
    run = make_run(gpus=2, end=ENDED, events=GUARDED)
    data = embedded(page(run))
    assert data["time"] == [sample.time for sample in run.samples]
    fields = {key: [getattr(sample, key) for sample in run.samples] for key in data["columns"] if not key.startswith("gpu")}
    cards = {
        f"gpu{card}.{field}": [getattr(sample.gpus[card], field) for sample in run.samples]
        for card in range(2)
        for field in ("used", "busy", "power", "temperature")
    }
    assert data["columns"] == fields | cards
    assert set(fields) >= {"anon", "shmem", "file", "swap", "memory_pressure", "os_memory_pressure", "disk_read", "disk_write", "cpu"}
    limits = {plot["key"]: plot["limit"] for plot in data["plots"]}
    assert (limits["memory"], limits["swap"]) == (run.start.limits["memory_max"], run.start.limits["swap_max"])
    assert [(event["time"], event["tone"]) for event in data["events"]] == [(GUARDED[0].time, "guard"), (GUARDED[1].time, "bad")]
    assert [stretch["phase"] for stretch in data["phases"]] == list(dict.fromkeys(sample.phase for sample in run.samples))


def test_every_figure_of_the_table_is_the_recorders() -> None:
    run = make_run(gpus=1, end=ENDED)
    cells = {
        attrs["data-key"]: float(attrs["data-value"] or 0) for tag, attrs in Seen(page(run)).tags if tag == "td" and "data-key" in attrs
    }
    for key, pick in {"memory": max, "swap": max, "ram_available": min, "memory_pressure": max, "disk_read": max, "tokens": max}.items():
        assert cells[key] == pick(value for sample in run.samples if (value := getattr(sample, key)) is not None), key
    assert cells["gpu0.used"] == max(sample.gpus[0].used for sample in run.samples)
    assert cells["ended_after"] == 40


def test_a_gpu_that_is_not_there_has_no_plot() -> None:
    assert "gpu-memory" not in {plot["key"] for plot in embedded(page(make_run()))["plots"]}


def test_the_verdict_its_evidence_and_the_change_are_on_top() -> None:
    verdict = Verdict(
        "oom",
        "Killed at its limit",
        BEGUN,
        "bad",
        (Evidence(BEGUN + 1, "a fact"),),
        (SettingChange("swap.size", "1234G", "2345G", "more"),),
        "do this",
    )
    words = " ".join(Seen(render_html(make_run(), verdict)).words)
    places = [
        words.rindex(text)
        for text in ("Killed at its limit", "do this", "swap.size", "1234G", "2345G", "a fact", "Timeline", "Last log lines")
    ]
    assert places == sorted(places)


@pytest.mark.parametrize("run", [make_run(phases=("starting",), seconds=1)._replace(samples=()), make_run(log=()), make_run(end=ENDED)])
def test_a_run_that_was_over_at_once_or_still_runs_has_a_page(run: Run) -> None:
    assert MARK in page(run)[:200]


def test_it_needs_nothing_from_elsewhere_and_runs_no_script_but_its_own() -> None:
    seen = Seen(page(make_run()))
    assert not [attrs for _, attrs in seen.tags if {"src", "srcset", "style", "onload", "onclick"} & attrs.keys()]
    assert all((attrs.get("href") or "#").startswith("#") for _, attrs in seen.tags)
    policy = next(attrs["content"] for tag, attrs in seen.tags if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy")
    allowed = re.search(r"script-src ([^;]*);", policy or "")
    assert allowed
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in seen.scripts[1:]]
    assert allowed[1].split() == hashes
    assert (policy or "").startswith("default-src 'none';")


def test_an_option_with_the_name_of_a_limit_hides_neither() -> None:
    run = make_run()
    run = run._replace(start=run.start._replace(limits={"tasks_max": 4096}, args={"tasks_max": 17}))
    assert {"4096", "17"} <= set(Seen(render_html(run, Verdict("x", "x", BEGUN, "ok"))).words)


HOSTILE = (
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "]]>",
    '"><img src=x onerror=alert(1)>',
    "&lt;b&gt;",
    "\u2028\x00\x1b[31m",
    "\ud800",
)


def poisoned(text: str) -> Run:
    """Return a run in which each text is this one."""
    run = make_run(phases=("starting", text or "x"), log=[f"{text} Killed", f"ERROR {text}"], end=ENDED | {"reason": text, "result": text})
    start = run.start._replace(host={text: text}, versions={"engine": text}, args={text: [text, {text: text}]}, name=text, run=text)
    return run._replace(start=start, events=(Event(BEGUN + 1, text, text, {"act": text}), Event(BEGUN + 2, "guard", text)))


def check_harmless(text: str) -> None:
    run = poisoned(text)
    verdict = Verdict(text, text, BEGUN, "bad", (Evidence(BEGUN, text),), (SettingChange(text, text, text, text),), text)
    written = render_html(run, verdict).encode().decode()
    seen, harmless = Seen(written), Seen(render_html(poisoned("x"), verdict._replace(sentence="x")))
    assert [tag for tag, _ in seen.tags] == [tag for tag, _ in harmless.tags]
    assert seen.scripts[1:] == harmless.scripts[1:]
    data = json.loads(seen.scripts[0])
    assert data["name"] == text
    assert "\x1b" not in written


@pytest.mark.parametrize("text", [text for text in (*HOSTILE, "engine") if text != "\ud800"])
def test_what_a_run_says_cannot_be_markup(text: str) -> None:
    check_harmless(text)


@settings(max_examples=60)
@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("<>&\"'/!-`\\"), min_size=1, max_size=40))
def test_nothing_that_a_run_says_can_be_markup(text: str) -> None:
    assume(text not in PHASES)  # a phase gives another page
    check_harmless(text)


def test_half_a_character_ends_no_report() -> None:
    render_html(poisoned("\ud800"), Verdict("x", "\ud800", BEGUN)).encode()


def test_secrets_are_on_no_part_of_it() -> None:
    key = "hf_abcdefghijklmnopqrstuv"
    run = make_run(
        log=[f"token {key}"],
        end=ENDED | {"reason": f"401 for {key}"},
        events=[Event(BEGUN + 1, "guard", key)],
        start={"args": {"api-key": key}},
    )
    assert key not in page(run)
