"""What one machine decides about the others that serve the same model, without a connection or a clock."""

from __future__ import annotations

from vllm_safe.contract.launch_file import Launch
from vllm_safe.launch.node_group import HOLD, SILENT, NodeGroup
from vllm_safe.launch.node_messages import Alive, Farewell, Go, Hello

NODES = ("gpu1", "gpu2", "gpu3")
AGREED = {"the engine": "vllm 0.32.0", "args.dtype": "half"}


def _group(rank: int = 0) -> NodeGroup:
    return NodeGroup(Launch("big", nodes=NODES, rank=rank, nodes_port=29500), AGREED, 0.0)


def _serving(rank: int = 0) -> NodeGroup:
    group = _group(rank)
    if rank:
        group.connected()
        group.received("gpu1", Go())
    else:
        for name in NODES[1:]:
            assert group.greet(Hello("big", name, AGREED)) == ""
        group.started = True
    return group


def _pass(group: NodeGroup, start: int, end: int) -> list[str]:
    return [name for now in range(start, end + 1) for name in group.pass_time(float(now))]


def _verdict(group: NodeGroup) -> str:
    return group.verdict.text if group.verdict else ""


# --- waiting


def test_the_first_machine_waits_until_all_are_there_in_any_order() -> None:
    group = _group()
    assert group.waiting_for == "waiting for gpu2 and gpu3"
    group.greet(Hello("big", "gpu3", AGREED))
    assert (group.complete, group.waiting_for) == (False, "waiting for gpu2")
    group.disconnected("gpu3")
    group.greet(Hello("big", "gpu2", AGREED))
    assert (group.complete, group.verdict) == (False, None)
    assert group.waiting_for == "waiting for gpu3; gpu3 ended without giving a reason"
    group.greet(Hello("big", "gpu3", AGREED))
    assert group.complete


def test_another_machine_waits_for_the_first_and_shows_for_which_one_that_waits() -> None:
    group = _group(2)
    group.trouble = "No route to host"
    assert group.waiting_for == "waiting for gpu1 (No route to host)"
    group.trouble = ""
    group.connected()
    assert group.waiting_for == "waiting for gpu1 to start the model"
    group.received("gpu1", Alive("waiting", 0.0, "waiting for gpu2"))
    assert (group.waiting_for, group.started) == ("waiting for gpu2", False)
    group.received("gpu1", Go())
    assert (group.started, group.complete) == (True, False)


def test_what_differs_is_named_before_anything_is_loaded() -> None:
    group = _group()
    other = Hello("big", "gpu2", AGREED | {"the engine": "vllm 0.31.0"})
    assert group.greet(other) == "the engine differs: vllm 0.32.0 on gpu1, vllm 0.31.0 on gpu2"
    assert group.verdict == Farewell("the engine differs: vllm 0.32.0 on gpu1, vllm 0.31.0 on gpu2", never=True)
    group = _group()
    assert group.greet(Hello("big", "gpu2", {"the engine": "vllm 0.32.0"})) == "args.dtype differs: half on gpu1, none on gpu2"
    group = _group()
    assert group.greet(Hello("big", "gpu2", AGREED | {"args.seed": "1"})) == "args.seed differs: none on gpu1, 1 on gpu2"


def test_another_model_on_the_port_is_told_and_does_no_harm() -> None:
    group = _group()
    assert "asks for small" in group.greet(Hello("small", "gpu2", AGREED))
    assert group.verdict is None


# --- ends


def test_an_end_is_passed_on_as_it_was_said() -> None:
    group = _serving()
    group.received("gpu2", Farewell("gpu2 ended: no progress", never=False))
    assert group.verdict == Farewell("gpu2 ended: no progress", never=False)
    group.disconnected("gpu2")
    group.received("gpu3", Farewell("gpu3 ended: it lacks gpu2", never=False))
    assert _verdict(group) == "gpu2 ended: no progress"


def test_a_connection_that_closes_is_an_end() -> None:
    group = _serving(1)
    group.disconnected("gpu1")
    assert _verdict(group) == "gpu1 ended without giving a reason"


def test_silence_is_an_end_after_a_bound() -> None:
    group = _serving()
    assert _pass(group, 1, int(SILENT) - 1) == []
    group.received("gpu3", Alive("ready", 0.0, ""))
    assert _pass(group, int(SILENT), int(SILENT) + 1) == ["gpu2"]
    text = "gpu2 has not been heard from for 30 s: it is down, or the network to it is"
    assert group.verdict == Farewell(text, never=False, elsewhere=True)


def test_time_in_which_this_process_did_not_run_is_no_silence() -> None:
    group = _serving()
    assert group.pass_time(3600.0) == ()
    assert group.verdict is None


def test_a_machine_that_comes_back_has_ended_before() -> None:
    group = _serving()
    assert group.greet(Hello("big", "gpu2", AGREED)) != ""
    assert _verdict(group) == "gpu2 was started again while the others served"


def test_a_lost_connection_waits_for_the_machine_that_ended_first() -> None:
    group = _serving()
    group.received("gpu2", Farewell("the server on gpu2 lost its connection", never=False, elsewhere=True))
    group.disconnected("gpu2")
    assert _verdict(group) == "the server on gpu2 lost its connection"
    group = _serving()
    group.received("gpu2", Farewell("the server on gpu2 lost its connection", never=False, elsewhere=True))
    for now in range(1, int(HOLD)):
        group.received("gpu3", Alive("ready", 0.0, ""))
        group.pass_time(float(now))
    assert group.verdict is None
    group.received("gpu3", Farewell("gpu3 ended: killed", never=False))
    assert _verdict(group) == "gpu3 ended: killed"
    group = _serving()
    group.received("gpu2", Farewell("the server on gpu2 lost its connection", never=False, elsewhere=True))
    _pass(group, 1, int(HOLD))
    assert group.verdict == Farewell("the server on gpu2 lost its connection", never=False, elsewhere=True)


def test_one_that_can_never_work_ends_all_even_while_they_wait() -> None:
    group = _group(1)
    group.connected()
    group.received("gpu1", Farewell("the engine differs", never=True))
    assert group.verdict == Farewell("the engine differs", never=True)


# --- progress


def test_others_that_make_progress_are_waited_for() -> None:
    group = _serving()
    group.received("gpu2", Alive("loading", 5.0, ""))
    group.received("gpu3", Alive("ready", 900.0, ""))
    assert group.still == 5.0
    assert group.progress == "; gpu2: loading"


def test_the_others_are_ready_when_the_first_answers() -> None:
    group = _serving(1)
    group.received("gpu1", Alive("warming-up", 0.0, ""))
    assert not group.first_serves
    group.received("gpu1", Alive("ready", 0.0, ""))
    assert group.first_serves
    assert not _serving().first_serves
