"""Why a run was ended, in the words of the main process itself: its pure core is taken to each end. All within what tests/runs.py tells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.runs import BEGUN, TIMES
from vllm_safe.contract.launch_file import Launch
from vllm_safe.contract.state_file import NO_CARDS, CardUsage
from vllm_safe.launch.http_probe import Answer
from vllm_safe.launch.lifecycle import Lifecycle
from vllm_safe.launch.liveness import RUNNING, TOKENS
from vllm_safe.launch.processes import Process

_URL = "http://127.0.0.1:8000"
_VLLM = Launch("qwen72b", health=f"{_URL}/health", metrics=f"{_URL}/metrics", completions=f"{_URL}/v1/completions", **TIMES)  # type: ignore[arg-type] # times alone
_WORKER = Process(71, 1, "VLLM::Worker_TP", "S", 1.0, 0, 0, 0, 1 << 30, 1 << 30)
_BUSY = Answer("returns HTTP 200", healthy=True, status=200, figures={RUNNING: 1.0, TOKENS: 7.0})


def stall(*, said: str = "", cards: CardUsage = NO_CARDS, **times: float) -> dict[str, Any]:
    """Nothing moves while it loads; said: but a line each minute; cards: as busy as these, and a process spins."""
    life = Lifecycle(_VLLM._replace(**times), 0.0, BEGUN)  # type: ignore[arg-type] # times alone
    life.heard(b"(Worker pid=7) INFO 11-23 22:10:48 [gpu_model_runner.py:1] Starting to load model /srv/tiny...\n", 0.0, BEGUN)
    return _end(_until(life, [_WORKER], said=said, cards=cards))


def hang(*, left: Sequence[Process] = (_WORKER,)) -> dict[str, Any]:
    """It serves, and requests get no token; or only these processes are left of it."""
    life = _life()
    life.answered(0.0, BEGUN, "health", _BUSY)
    life.answered(0.0, BEGUN, "token", _BUSY)
    life.looked(0.0, BEGUN, [_WORKER])
    return _end(_until(life, left))


def hang_warming_up() -> dict[str, Any]:
    """The first request is never answered."""
    life = _life()
    life.answered(0.0, BEGUN, "health", _BUSY)
    return _end(_until(life, [_WORKER]))


def start_timeout() -> dict[str, Any]:
    """It gets on, and does not get there."""
    life = _life()
    life.answered(1.0, BEGUN, "health", Answer("refuses connections"))
    life.tick(TIMES["start_timeout"], BEGUN)
    return _end(life)


def _life() -> Lifecycle:
    return Lifecycle(_VLLM, 0.0, BEGUN)


def _until(life: Lifecycle, processes: Sequence[Process], *, said: str = "", cards: CardUsage = NO_CARDS) -> Lifecycle:
    """As the loop does it, a second at a time."""
    spins = bool(said or cards.busy)
    for second in range(1, 4000):
        now, wall = float(second), BEGUN + second
        life.tick(now, wall)
        if said and second % 60 == 0:
            life.heard(f"{said.format(second // 60)}\n".encode(), now, wall)
        if second % 2 == 0:
            life.looked(now, wall, [process._replace(cpu=now) for process in processes] if spins else processes, cards)
            if life.alive:
                life.answered(now, wall, "metrics", _BUSY)
        if life.cause:
            break
    return life


def _end(life: Lifecycle) -> dict[str, Any]:
    return {"cause": life.cause, "reason": life.reason, "result": "exit-code", "exit_code": "exited", "exit_status": "1"}
