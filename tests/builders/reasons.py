"""How a run ended, in the words of the main process and of `vllm-safe apply`: their pure cores are taken to each end.

Each is the fields of an End. `time` is when it happened: the run that ends with it is as long.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from tests.builders.runs import BEGUN, EACH, LOADING, PHASES, TIMES
from tests.builders.situations import situation_of
from vllm_safe.common.errors import EXIT_IDLE
from vllm_safe.common.findings import Finding
from vllm_safe.config.settings import Config, Model
from vllm_safe.contract.launch_file import Launch
from vllm_safe.contract.state_file import NO_CARDS, CardUsage
from vllm_safe.decide.restarts import RESTARTS, limit_restarts
from vllm_safe.decide.start_checks import check_port
from vllm_safe.host.host_facts import Host
from vllm_safe.host.start_facts import StartFacts, Starts
from vllm_safe.launch.actions import Action, Quit
from vllm_safe.launch.http_probe import Answer
from vllm_safe.launch.idleness import FINISHED
from vllm_safe.launch.lifecycle import Lifecycle
from vllm_safe.launch.liveness import RUNNING, TOKENS, WAITING
from vllm_safe.launch.node_group import SILENT, NodeGroup
from vllm_safe.launch.node_messages import Farewell, Hello
from vllm_safe.launch.processes import Process

_URL = "http://127.0.0.1:8000"
_VLLM = Launch("qwen72b", health=f"{_URL}/health", metrics=f"{_URL}/metrics", completions=f"{_URL}/v1/completions", **TIMES)  # type: ignore[arg-type] # times alone
_WORKER = Process(71, 1, "VLLM::Worker_TP", "S", 1.0, 0, 0, 0, 1 << 30, 1 << 30)
_BUSY = Answer("answers 200", healthy=True, status=200, figures={RUNNING: 1.0, TOKENS: 7.0})
LOADS_AT = LOADING.index("loading") * EACH  # seconds after the start
WARMS_UP_AT = len(LOADING) * EACH
READY_AT = (len(PHASES) - 1) * EACH


def time_of_day(moment: float) -> str:
    """Return the time of day in UTC: goldens do not depend on the time zone of the machine."""
    return time.strftime("%H:%M:%S", time.gmtime(moment))


def stall(*, said: str = "", cards: CardUsage = NO_CARDS, **times: float) -> dict[str, Any]:
    """Nothing moves while it loads; said: but a line each minute; cards: as busy as these, and a process spins."""
    life = _loads(_VLLM._replace(**times))  # type: ignore[arg-type] # times alone
    return _hung(life, LOADS_AT, [_WORKER], said=said, cards=cards)


def hang(*, left: Sequence[Process] = (_WORKER,)) -> dict[str, Any]:
    """Hang while serving: requests get no token; or only these processes are left of it."""
    life = _serves()
    life.looked(READY_AT, BEGUN + READY_AT, [_WORKER])
    return _hung(life, READY_AT, left)


def hang_warming_up() -> dict[str, Any]:
    """Hang while warming up: the first request is never answered."""
    life = _loads()
    life.answered(WARMS_UP_AT, BEGUN + WARMS_UP_AT, "health", _BUSY)
    return _hung(life, WARMS_UP_AT, [_WORKER])


def start_timeout() -> dict[str, Any]:
    """Load with progress beyond start_timeout."""
    life, after = _loads(), TIMES["start_timeout"]
    life.answered(1.0, BEGUN + 1, "health", Answer("refuses connections"))
    life.tick(after, BEGUN + after)
    return _end(life, after, code=1)


def exited(status: int, *lines: str, after: float = 9.0) -> dict[str, Any]:
    """End before the server is ready, with this wait status, after these lines."""
    life = _loads()
    return _end(life, after, life.exited(after, BEGUN + after, status, (), lines))


def exited_serving(status: int, *lines: str, after: float = 2.0) -> dict[str, Any]:
    """End by itself so many seconds after the server was ready."""
    life, at = _serves(), READY_AT + after
    return _end(life, at, life.exited(at, BEGUN + at, status, (), lines))


def stopped(after: float = 2.0) -> dict[str, Any]:
    """Stop a server that serves, as systemd asks."""
    life, at = _serves(), READY_AT + after
    life.asked_to_stop(at, BEGUN + at)
    return _end(life, at, life.exited(at, BEGUN + at, 0, (), ()))


def made_room() -> dict[str, Any]:
    """Stop a server that serves, since another model needs its room."""
    life, at = _serves(), READY_AT + 2.0
    life.asked_to_stop(at, BEGUN + at, room_for="coder")
    return _end(life, at, life.exited(at, BEGUN + at, 0, (), ()))


def idle() -> dict[str, Any]:
    """End a server that a request started, and that nobody has asked for since."""
    life, at = _serves(_VLLM._replace(request=7, idle_timeout=1800.0)), READY_AT + 1810.0
    life.answered(
        at,
        BEGUN + at,
        "metrics",
        Answer("returns HTTP 200", healthy=True, status=200, figures=dict.fromkeys((RUNNING, WAITING, FINISHED), 0.0)),
    )
    return _end(life, at, life.exited(at, BEGUN + at, 0, (), ()))


def not_started(why: str) -> dict[str, Any]:
    """Fail to start: the kernel had no process or no memory for it."""
    life = Lifecycle(_VLLM, 0.0, BEGUN, time_of_day)
    return _end(life, 1.0, life.not_started(BEGUN, why))


def node_ended(*, silent: bool = False) -> dict[str, Any]:
    """Another machine that serves the model says why it ended, while this one serves; or it has not been heard from."""
    launch = _VLLM._replace(nodes=("gpu1", "gpu2"), nodes_port=29500)
    group = NodeGroup(launch, {}, 0.0)
    life = Lifecycle(launch, 0.0, BEGUN, time_of_day)
    life.tick(0.0, BEGUN)
    group.greet(Hello("qwen72b", "gpu2", {}))
    life.met(0.0, BEGUN, group)
    group.started = True
    for what in ("health", "token"):
        life.answered(READY_AT, BEGUN + READY_AT, what, _BUSY)
    at = READY_AT + 2.0
    if silent:
        for second in range(int(SILENT) + 1):
            group.pass_time(float(second))
    else:
        group.received("gpu2", Farewell("gpu2 ended: qwen72b exited because its process VllmWorker-1 was killed by SIGKILL.", never=False))
    life.met(at, BEGUN + at, group)
    return _end(life, at, life.exited(at, BEGUN + at, 0, (), ()))


def refused() -> dict[str, Any]:
    """Another server has its port."""
    at = situation_of(
        Config(models={"qwen72b": Model(model="a/b")}),
        Host(listening=frozenset({("127.0.0.1", 8000)})),
        "qwen72b",
        StartFacts(addresses=frozenset({"127.0.0.1"})),
    )
    return _refusal("refused", check_port(at))


def gave_up(time: float) -> dict[str, Any]:
    """One automatic restart too many, at this Unix time."""
    _, finding = limit_restarts(Starts(RESTARTS, (0.0, 9.0, 19.0)), RESTARTS + 1, None, 29.0, "qwen72b")
    assert finding is not None
    return {**_refusal("gave-up", finding), "time": time}


def _refusal(cause: str, finding: Finding) -> dict[str, Any]:
    """As the main process says what is in a launch file (launch/launch_main.py)."""
    code = {"result": "exit-code", "exit_code": "exited", "exit_status": "2"}
    return {"time": BEGUN + 1, "cause": cause, "reason": f"{finding.what}. {finding.do_next}", **code}


def _loads(launch: Launch = _VLLM) -> Lifecycle:
    life = Lifecycle(launch, 0.0, BEGUN, time_of_day)
    line = b"(Worker pid=7) INFO 11-23 22:20:52 [gpu_model_runner.py:1] Starting to load model /srv/tiny...\n"
    life.looked(0.0, BEGUN, [_WORKER])
    life.printed(line, LOADS_AT, BEGUN + LOADS_AT)
    return life


def _serves(launch: Launch = _VLLM) -> Lifecycle:
    life = _loads(launch)
    for what in ("health", "token"):
        life.answered(READY_AT, BEGUN + READY_AT, what, _BUSY)
    return life


def _hung(life: Lifecycle, since: float, processes: Sequence[Process], *, said: str = "", cards: CardUsage = NO_CARDS) -> dict[str, Any]:
    """As the loop does it, a second at a time."""
    spins = bool(said or cards.busy)
    for second in range(1, 4000):
        now, wall = since + second, BEGUN + since + second
        life.tick(now, wall)
        if said and second % 60 == 0:
            life.printed(f"{said.format(second // 60)}\n".encode(), now, wall)
        if second % 2 == 0:
            life.looked(now, wall, [process._replace(cpu=now) for process in processes] if spins else processes, cards)
            if life.alive:
                life.answered(now, wall, "metrics", _BUSY)
        if life.cause:
            return _end(life, now, code=1)
    raise AssertionError("it never counted as hung")


def _end(life: Lifecycle, now: float, actions: Sequence[Action] = (), *, code: int = 0) -> dict[str, Any]:
    """Return what the main process has written about it, and systemd says of the main process."""
    code = next((action.code for action in actions if isinstance(action, Quit)), code)
    said = {"time": BEGUN + now, "cause": life.cause, "reason": life.reason, "error": life.error, "served": life.served}
    return said | {"result": "success" if code in {0, EXIT_IDLE} else "exit-code", "exit_code": "exited", "exit_status": str(code)}
