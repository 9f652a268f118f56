"""Whose fault an end is, from what vLLM printed on the machine that lost a worker and on the one that only lost a connection."""

from __future__ import annotations

from vllm_safe.launch.node_blame import find_lost_connection

CLOSED = (
    "(Worker_TP0 pid=716) ERROR 11-28 21:31:21 [multiproc_executor.py:1063] RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/"
    "pair.cc:547] Connection closed by peer [10.77.0.2]:57246"
)
KILLED = "(MainProcess pid=485) ERROR 11-28 21:31:21 [multiproc_executor.py:315] Worker proc VllmWorker-1 died unexpectedly (exit code: -9)"
ABORTED = KILLED.replace("-9", "-6")
DIED = KILLED.replace("-9", "None")  # vLLM did not know yet how
OWN = "(Worker_TP1 pid=9) ERROR 11-28 21:31:20 [multiproc_executor.py:1063] RuntimeError: the weights are made of cheese"
MEMORY = "(Worker_TP1 pid=9) ERROR 11-28 21:31:20 [x.py:1] torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
STATS = "(EngineCore pid=318) ERROR 11-28 21:31:21 [dump_input.py:79] Dumping scheduler stats: SchedulerStats(num_running_reqs=1)"


def _found(*lines: str) -> str:
    return find_lost_connection(lines, lines, served=True)


def test_a_server_that_only_lost_a_connection() -> None:
    assert _found(CLOSED, STATS) == CLOSED
    assert _found(CLOSED, ABORTED) == CLOSED
    assert _found(CLOSED, DIED) == CLOSED


def test_a_server_that_has_a_reason_of_its_own() -> None:
    assert _found(KILLED, CLOSED) == ""
    assert _found(DIED, CLOSED) == ""
    assert _found(OWN, CLOSED) == ""
    assert _found(MEMORY, CLOSED) == ""
    assert _found(STATS) == ""
