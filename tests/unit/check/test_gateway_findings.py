"""Checks of the gateway and of models on demand, each in the case that it exists for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.builders.checked_machines import CONFIG, GOOD, SEEN
from vllm_safe.check.check_facts import Inspection
from vllm_safe.check.gateway_findings import check_gateway, check_room
from vllm_safe.common.key_file import Key
from vllm_safe.config.settings import GatewaySection
from vllm_safe.contract.gateway_file import GatewayFile, GatewayModel

BAD_KEY, HIDDEN = Key(Path("/k"), problem="/k does not exist", way_out="Create a key"), Key(Path("/k"), problem="no", hidden=True)
RUNS = {"vllm-gateway.service": {"ActiveState": "active"}}


@pytest.mark.parametrize(
    ("host", "seen", "level", "says"),
    [
        ("127.0.0.1", {"units": RUNS}, "pass", "the gateway listens on 127.0.0.1:8080 for all models"),
        ("127.0.0.1", {"aiohttp": False}, "fail", "python3-aiohttp is not installed"),
        ("127.0.0.1", {}, "warn", "the gateway is enabled, but not running"),
        ("192.0.2.1", {"units": RUNS}, "warn", "the gateway listens on 192.0.2.1 without a key"),
        ("192.0.2.1", {"units": RUNS, "gateway_key": Key(Path("/k"), "secret")}, "pass", "192.0.2.1:8080"),
        ("127.0.0.1", {"gateway_key": BAD_KEY}, "fail", "/k does not exist"),
        ("127.0.0.1", {"gateway_key": HIDDEN}, "warn", "can only be checked by root"),
    ],
)
def test_the_gateway_can_run_and_does(host: str, seen: dict[str, Any], level: str, says: str) -> None:
    config = replace(CONFIG, gateway=GatewaySection(enabled=True, host=host))
    found = check_gateway(replace(GOOD, config=config, seen=Inspection(**seen)))
    assert found is not None
    assert (str(found.level), says in found.what) == (level, True)
    assert "secret" not in found.what
    assert check_gateway(GOOD) is None


def test_models_that_make_room_for_each_other_are_listed() -> None:
    models = tuple(
        GatewayModel(name, (name,), "", ("", 1), on_demand=name != "c", memory=size) for name, size in (("a", 6), ("b", 6), ("c", 2))
    )
    seen = replace(SEEN, gateway=GatewayFile(models=models, memory=8))
    assert check_room(GOOD) is None
    told = "models on demand: these pairs do not fit together, so one makes room for the other: a and b"
    assert check_room(replace(GOOD, seen=seen)).what == told  # type: ignore[union-attr]
    roomy = replace(SEEN, gateway=GatewayFile(models=models, memory=12))
    assert check_room(replace(GOOD, seen=roomy)).what == "models on demand: any two models fit together"  # type: ignore[union-attr]
