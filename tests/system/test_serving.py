"""vllm@NAME.service with the real vLLM on the CPU: ready means an answer, and whichever of its processes dies, nothing is left."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import pytest

from tests.beds import engine, tiny_model
from tests.beds.nspawn import Nspawn

pytestmark = [pytest.mark.nspawn, pytest.mark.engine]

# Model -> which of its processes it loses: the child of our main process, which is the API server, or one by the name it gives itself.
VICTIMS = {"api": "", "core": "VLLM::EngineCor", "worker": "VLLM::Worker"}
# Compiles nothing: ready in half a minute.
MODEL = """\
  {name}:
    model: {model}
    port: {port}
    args: {{enforce-eager: true{more}}}
    env: {{VLLM_CPU_KVCACHE_SPACE: "1"}}
    stop_grace: 10s
    stall_timeout: 20s
    hang_timeout: 20s
"""
MORE = {"wrong": ", max-num-seqs: a few", "long": ", max-model-len: 999999"}
CONFIG = "swap: {size: none}\nengine: {package: vllm-cpu}\nmodels:\n" + "".join(
    MODEL.format(name=name, model=engine.MODEL, port=port, more=MORE.get(name, ""))
    for port, name in enumerate(("demo", *VICTIMS, *MORE), start=8000)
)
GROUPS = "/sys/fs/cgroup/vllm.slice"
OURS = "-path '*vllm*' -not -path '*-vllm-safe-*'"  # the recorder and the guard have folders of their own
LITTER = f"find /dev/shm /tmp /var/tmp /run/vllm /run/credentials -mindepth 1 \\( -user vllm -o {OURS} \\) 2>/dev/null"


@pytest.fixture(scope="module")
def bed(nspawn_serving: Nspawn) -> Nspawn:
    nspawn_serving.write("/etc/vllm-safe/config.yaml", CONFIG)
    # Longer than any test looks: models lose their processes one after another, and the first is not to be back when the last is gone.
    nspawn_serving.write("/run/systemd/system/vllm@.service.d/later.conf", "[Service]\nRestartSec=10min\n")
    nspawn_serving.run("systemctl daemon-reload")
    return nspawn_serving


@pytest.fixture(autouse=True)
def _tidy(bed: Nspawn) -> Iterator[None]:
    yield
    bed.run("systemctl stop 'vllm@*' && systemctl reset-failed 'vllm@*'", check=False)


def _nothing_is_left(bed: Nspawn) -> None:
    left = f"pgrep --list-full --uid vllm; {LITTER}; ls -d {GROUPS}/vllm@* 2>/dev/null; ss -xlH | grep vllm; true"
    bed.wait_for("systemd removes the last of its folders", lambda: bed.out(left) == "", timeout=10)


def _start(bed: Nspawn, names: Iterable[str], *options: str) -> None:
    bed.run(["systemctl", "start", *options, *(f"vllm@{name}" for name in names)], timeout=300)


def _victim(bed: Nspawn, name: str) -> str:
    """Return the PID of the process that a model is to lose, or "" if it does not run yet. An API server counts once it has an engine."""
    find = 'cd /proc && for pid in $(cat "$0"); do grep -q "^$1" $pid/comm && echo $pid; done | head -n 1; true'
    named = bed.out(["sh", "-c", find, f"{GROUPS}/vllm@{name}.service/cgroup.procs", VICTIMS[name] or "VLLM::EngineCor"])
    return named if VICTIMS[name] or not named else bed.out(["pgrep", "--parent", bed.model(name)["MainPID"]])


def _has_victim(bed: Nspawn, name: str) -> bool:
    return _victim(bed, name) != ""


def _state(bed: Nspawn, name: str) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(bed.read(f"/run/vllm-safe/state/{name}.json"))
    return state


def _are_tried_again(bed: Nspawn, within: float) -> None:
    """All that lost a process, each with all that belonged to it."""

    def waits(name: str) -> bool:
        return bed.model(name)["SubState"] == "auto-restart" and not bed.exists(f"{GROUPS}/vllm@{name}.service")

    until = time.monotonic() + within
    for name in VICTIMS:
        bed.wait_for(f"systemd waits to start {name} again", partial(waits, name), timeout=max(1.0, until - time.monotonic()))
        bed.run(f"systemctl stop vllm@{name}")  # the next one may take longer than its pause
    _nothing_is_left(bed)


def _dies_first(bed: Nspawn) -> None:
    """When the kernel or earlyoom must choose, it is a process of the server and not the one that watches it."""
    main = bed.model("demo")["MainPID"]
    scores = {pid: bed.read(f"/proc/{pid}/oom_score_adj").strip() for pid in bed.out("pgrep --uid vllm").split()}
    assert scores.pop(main) == "0"
    assert len(scores) > 2
    assert set(scores.values()) == {"1000"}


def _stops_in_time(bed: Nspawn) -> None:
    start = time.monotonic()
    bed.run("systemctl stop vllm@demo")
    assert time.monotonic() - start < 10 + 5  # the bound that is promised, not a measurement
    _nothing_is_left(bed)


def test_ready_means_an_answer_and_stopped_means_gone(bed: Nspawn) -> None:
    """And idle means left alone: meanwhile others are told what vLLM does not take, and are not tried again."""
    _start(bed, ["demo"])
    prompt, expected = tiny_model.SENTENCE[:15], tiny_model.SENTENCE[15:35]
    question = json.dumps({"model": "demo", "prompt": prompt, "max_tokens": len(expected), "temperature": 0})
    ask = "curl --fail --silent --show-error http://127.0.0.1:8000/v1/completions --header 'Content-Type: application/json' --data @-"
    answer = json.loads(bed.run(ask, stdin=question).stdout)
    assert answer["choices"][0]["text"] == expected
    idle_since = time.monotonic()
    assert bed.model("demo")["StatusText"] == "ready, serving demo on http://127.0.0.1:8000"
    _dies_first(bed)
    main = bed.model("demo")["MainPID"]

    assert bed.run("systemctl start vllm@wrong vllm@long", check=False, timeout=300).returncode != 0
    wrong, long = bed.model("wrong"), bed.model("long")
    assert [(shown["ActiveState"], shown["ExecMainStatus"]) for shown in (wrong, long)] == [("failed", "2")] * 2
    assert "argument args.max-num-seqs: " in wrong["StatusText"]
    assert "max-model-len 999999 exceeds the model's maximum of " in long["StatusText"]

    time.sleep(max(0.0, idle_since + 30 - time.monotonic()))  # half as long again as its hang_timeout, with nothing to do
    assert bed.model("demo")["MainPID"] == main
    state = _state(bed, "demo")
    assert (state["phase"], state["running"]) == ("ready", 0)
    assert state["tokens"] > len(expected) / 8
    _stops_in_time(bed)


@pytest.mark.parametrize("seconds", [1, 5, 15])
def test_stopping_while_it_loads(bed: Nspawn, seconds: int) -> None:
    _start(bed, ["demo"], "--no-block")  # its limits are prepared first, by a unit of their own
    bed.wait_for("it starts", lambda: bed.model("demo")["ActiveState"] == "activating", pause=0.05)
    time.sleep(seconds)
    assert bed.model("demo")["ActiveState"] == "activating"
    _stops_in_time(bed)


def test_whichever_process_is_killed_all_go_and_it_is_tried_again(bed: Nspawn) -> None:
    _start(bed, VICTIMS)
    for name in VICTIMS:
        bed.run(["kill", "-KILL", _victim(bed, name)])
    _are_tried_again(bed, 60)
    assert {name: "ended after serving" in _state(bed, name)["reason"] for name in VICTIMS} == dict.fromkeys(VICTIMS, True)


def test_whichever_process_is_stopped_it_is_a_hang_and_it_is_tried_again(bed: Nspawn) -> None:
    _start(bed, VICTIMS)
    for name in VICTIMS:
        bed.run(["kill", "-STOP", _victim(bed, name)])
    _are_tried_again(bed, 20 + 60)
    assert {name: _state(bed, name)["cause"] for name in VICTIMS} == dict.fromkeys(VICTIMS, "hang")
    assert all("(hang_timeout)" in _state(bed, name)["reason"] for name in VICTIMS)


@pytest.mark.parametrize(("number", "cause"), [("KILL", "exited"), ("STOP", "stall")])
def test_whichever_process_falls_out_while_loading_all_go_and_it_is_tried_again(bed: Nspawn, number: str, cause: str) -> None:
    _start(bed, VICTIMS, "--no-block")
    for name in VICTIMS:  # in the order in which they come
        bed.wait_for(f"the {name} is there", partial(_has_victim, bed, name), timeout=300, pause=0.05)
        bed.run(["kill", f"-{number}", _victim(bed, name)])
    _are_tried_again(bed, 120)
    assert {name: _state(bed, name)["cause"] for name in VICTIMS} == dict.fromkeys(VICTIMS, cause)
