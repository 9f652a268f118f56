"""What `check` says of the other machines of a model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vllm_safe.check.node_findings import check_ways, ports_to_try
from vllm_safe.common.findings import Finding, Level
from vllm_safe.config.settings import Model
from vllm_safe.host.node_facts import NodeWay, TriedPort

MODEL = Model(model="a/b", nodes=("gpu1", "gpu2", "gpu3"))
WAY = NodeWay("gpu1", "10.0.0.1", "10.0.0.2", "lan0")
CLOSED, SILENT = TriedPort(29501, "Connection refused", refused=True), TriedPort(46883, "no answer within 5 s")
OTHER = NodeWay("gpu3", "10.0.0.3", "10.0.0.2", "lan0")


def _found(*ways: NodeWay, model: Model = MODEL) -> list[Finding]:
    return list(check_ways("big", model, 1, ways, "32768-60999"))


def test_machines_that_are_there() -> None:
    first, other, firewall = _found(replace(WAY, tried=(TriedPort(29500), CLOSED, replace(CLOSED, port=46883))), OTHER)
    assert {finding.level for finding in (first, other, firewall)} == {Level.PASS}
    assert first.what == (
        "gpu1 is 10.0.0.1, over lan0 from 10.0.0.2; of its ports, 29500 accepts connections, 29501 is closed, 46883 is closed"
    )
    assert other.what == "gpu3 is 10.0.0.3, over lan0 from 10.0.0.2"
    assert "TCP 29500 and 29501 on gpu1, and 32768-60999 on all" in firewall.what


@pytest.mark.parametrize(
    ("way", "level", "words"),
    [
        (replace(WAY, problem="its name has no address: Name or service not known"), Level.FAIL, "gpu1 cannot be reached: its name"),
        (replace(WAY, address="203.0.113.7"), Level.FAIL, "that is a public address"),
        (replace(WAY, interface="lo"), Level.FAIL, "that is this machine itself"),
        (replace(WAY, tried=(CLOSED,)), Level.PASS, "of its ports, 29501 is closed"),
        (replace(WAY, tried=(CLOSED, SILENT)), Level.WARN, "but its port 46883 cannot be reached: no answer within 5 s"),
    ],
)
def test_machines_that_are_not(way: NodeWay, level: Level, words: str) -> None:
    found = _found(way)[0]
    assert (found.level, words in found.what) == (level, True), found


def test_a_public_address_that_was_agreed_to() -> None:
    assert _found(replace(WAY, address="203.0.113.7"), model=replace(MODEL, nodes_public=True))[0].level is Level.PASS


def test_several_interfaces_are_one_too_many() -> None:
    assert _found(WAY, replace(OTHER, interface="lan1"))[-1].what.startswith(
        "the other machines are behind several interfaces (lan0, lan1)"
    )


def test_ports_are_tried_on_all_machines_and_more_on_the_first() -> None:
    assert ports_to_try(MODEL, "gpu1", "32768-60999") == (29500, 29501, 46883)
    assert ports_to_try(MODEL, "gpu3", "32768-60999") == (46883,)
    assert ports_to_try(MODEL, "gpu3", "") == ()
