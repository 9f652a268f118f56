"""The dashboard for Grafana against the metrics that the recorder writes: a query of a name or a label that is not there shows nothing."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.builders.runs import make_run
from vllm_safe.contract.recorded_run import Gpu, Sample
from vllm_safe.record.prometheus import render_metrics

ROOT = Path(__file__).parents[3]
FILE = ROOT / "debian/grafana-dashboard.json"
DASHBOARD: dict[str, Any] = json.loads(FILE.read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
TARGETS = [(panel["title"], target) for panel in PANELS for target in panel["targets"]]
QUERIES = [
    *(target["expr"] for _, target in TARGETS),
    *(variable["query"]["query"] for variable in VARIABLES.values() if variable["type"] == "query"),
]
METRIC = re.compile(r"(vllm_safe_\w+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')
SCRAPED = "instance"  # the label that Prometheus adds


def written() -> dict[str, dict[str, set[str]]]:
    """Return the labels of each metric with their values, as the file of a model has them of which every figure is known."""
    known: dict[str, Any] = dict.fromkeys(Sample._fields[2:], 0)
    gpu = Gpu(*(0 for _ in Gpu._fields))
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for line in render_metrics(make_run().start, Sample(0.0, "ready", **known | {"gpus": (gpu, gpu)})).splitlines():
        if row := re.match(r"(\w+)\{(.*)\} ", line):
            for label, value in re.findall(r'(\w+)="([^"]*)"', row[2]):
                found[row[1]][label].add(value)
    return found


WRITTEN = written()


def selected(query: str) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Yield each metric in a query, with the labels that it is selected by."""
    for name, matchers in METRIC.findall(query):
        yield name, MATCHER.findall(matchers)


@pytest.mark.parametrize("query", QUERIES)
def test_what_a_query_asks_for_is_written(query: str) -> None:
    assert list(selected(query))
    for name, matchers in selected(query):
        assert name in WRITTEN, name
        for label, operator, value in matchers:
            if value == f"${label}":
                assert label in VARIABLES
                assert label in {*WRITTEN[name], SCRAPED}
            else:
                assert operator in {"=", "=~"}
                assert set(value.split("|")) <= WRITTEN[name][label], f"{name} {label}"


@pytest.mark.parametrize(("title", "target"), TARGETS)
def test_labels_of_a_group_and_of_a_legend_are_there(title: str, target: dict[str, str]) -> None:
    labels = {SCRAPED}.union(*(WRITTEN[name] for name, _ in selected(target["expr"])))
    grouped = re.search(r"\bby \(([^)]*)\)", target["expr"])
    shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
    kept = set(re.split(r", *", grouped[1])) if grouped else labels
    assert kept <= labels, title
    assert shown <= kept, title
    assert shown, title


def test_every_metric_is_on_it() -> None:
    assert {name for query in QUERIES for name, _ in selected(query)} == set(WRITTEN)


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_is_whole(query: str) -> None:
    depth = 0
    for sign in re.sub(r'"[^"]*"', "", query):
        depth += {"(": 1, "{": 1, "[": 1, ")": -1, "}": -1, "]": -1}.get(sign, 0)
        assert depth >= 0
    assert depth == 0
    counts = any(name.endswith("_total") for name, _ in selected(query))
    assert ("rate(" in query) == counts, "a counter is shown by its rate, and nothing else is"


def test_all_panels_use_the_chosen_source_and_have_a_place_of_their_own() -> None:
    assert {json.dumps(panel["datasource"]) for panel in PANELS} == {json.dumps({"type": "prometheus", "uid": "${datasource}"})}
    assert VARIABLES["datasource"]["query"] == "prometheus"
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_it_is_installed_as_it_is_and_the_manual_says_where() -> None:
    assert str(FILE.relative_to(ROOT)) in (ROOT / "debian/docs").read_text().split()
    assert f"--exclude={FILE.name}" in (ROOT / "debian/rules").read_text()
    assert f"/usr/share/doc/vllm-safe/{FILE.name}" in (ROOT / "debian/make-manual.py").read_text()
