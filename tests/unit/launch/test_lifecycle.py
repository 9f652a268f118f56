"""The decisions of the main process at each event, without a process or a clock."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

import pytest

from tests.builders.reasons import time_of_day
from vllm_safe.common.errors import EXIT_IDLE
from vllm_safe.contract.launch_file import Launch
from vllm_safe.contract.state_file import NO_CARDS, CardUsage
from vllm_safe.launch.actions import Action, AskServer, Instruction, LogLine, NotifySystemd, Quit, SendSignal
from vllm_safe.launch.http_probe import Answer
from vllm_safe.launch.idleness import FINISHED
from vllm_safe.launch.lifecycle import Lifecycle
from vllm_safe.launch.liveness import RUNNING, TOKENS
from vllm_safe.launch.node_group import SILENT, NodeGroup
from vllm_safe.launch.node_messages import Alive, Farewell, Go, Hello
from vllm_safe.launch.processes import Process
from vllm_safe.launch.server_state import EXTEND_BY, EXTEND_EVERY, NODE_GRACE

URL = "http://127.0.0.1:8000"
TIMES = {"start_timeout": 600.0, "stop_grace": 120.0, "stall_timeout": 300.0, "hang_timeout": 100.0}
OTHER = Launch("demo", health=f"{URL}/health", **TIMES)  # type: ignore[arg-type] # times alone
VLLM = OTHER._replace(metrics=f"{URL}/metrics", completions=f"{URL}/v1/completions")
REFUSED, NOTHING = Answer("refuses connections"), Answer("closes the connection")
FAILED = Answer("returns HTTP 500", status=500)
HEALTHY, GONE = Answer("returns HTTP 200", healthy=True, status=200), Answer("returns HTTP 404", status=404)
EXIT_0, EXIT_1, EXIT_2, EXIT_127, KILLED = 0, 1 << 8, 2 << 8, 127 << 8, 9
WORKER = Process(12, 1, "VLLM::Worker_TP", "S", 1.0, 0, 0, 0, 1 << 20, 1 << 20)


class Life:
    """A lifecycle with equal clocks, and the actions that it returned."""

    def __init__(self, launch: Launch = OTHER, watchdog: float = 0.0, before: str = "") -> None:
        self.it = Lifecycle(launch, 1000.0, 1000.0, time_of_day, watchdog=watchdog, before=before)

    def tick(self, now: float) -> list[Action]:
        return self.it.tick(now, now)

    def answered(self, now: float, answer: Answer, what: str = "health") -> list[Action]:
        return self.it.answered(now, now, what, answer)

    def stop(self, now: float, room_for: str = "") -> list[Action]:
        return self.it.asked_to_stop(now, now, room_for)

    def exited(self, now: float, status: int, *lines: str) -> list[Action]:
        return self.it.exited(now, now, status, (), lines)

    def run(self, start: float, end: float, processes: Callable[[float], tuple[Process, ...]] = lambda _: (WORKER,)) -> list[Action]:
        """Tick each second, and return these processes at each reading; return all actions until the end began."""
        done: list[Action] = []
        for now in range(int(start), int(end) + 1):
            actions = self.tick(float(now))
            if Instruction.LOOK in actions:
                actions += self.it.looked(float(now), float(now), processes(float(now)))
            done += actions
            if self.it.phase in {"stopping", "ended"}:
                break
        return done


def _serving(launch: Launch = OTHER, before: str = "") -> Life:
    life = Life(launch, before=before)
    life.answered(1200.0, HEALTHY)
    if launch.completions:
        life.answered(1200.0, HEALTHY, "token")
    return life


def _told(actions: list[Action], field: str) -> str | None:
    return next((action.fields[field] for action in actions if isinstance(action, NotifySystemd) and field in action.fields), None)


def _quit(actions: list[Action]) -> int | None:
    return next((action.code for action in actions if isinstance(action, Quit)), None)


def _said(actions: list[Action]) -> str:
    return "\n".join(action.text for action in actions if isinstance(action, LogLine))


def _grows(now: float) -> tuple[Process, ...]:
    return (WORKER._replace(cpu=now, read=int(now) << 20),)


# --- loading


def test_tells_how_long_it_loads() -> None:
    life = Life()
    life.answered(1199.0, REFUSED)
    assert _told(life.tick(1200.0), "STATUS") == "starting, 3 min 20 s"
    assert _told(life.tick(1201.0), "STATUS") is None


@pytest.mark.parametrize("text", ["returns HTTP 503", "does not answer within 5 s"])
def test_tells_what_a_server_that_listens_but_is_not_ready_does(text: str) -> None:
    life = Life()
    assert life.answered(1004.0, Answer(text)) == []
    assert _told(life.tick(1200.0), "STATUS") == f"starting, 3 min 20 s; {URL}/health {text}"


def test_what_vllm_prints_is_its_phase_and_what_others_print_is_not() -> None:
    for launch, phase in ((VLLM, "loading"), (OTHER, "starting")):
        life = Life(launch)
        life.it.printed(b"(Worker pid=7) INFO 11-23 22:10:48 [gpu_model_runner.py:1] Starting to load model /srv/tiny...\n", 1010.0, 1010.0)
        assert life.it.phase == phase


def test_systemd_is_asked_for_more_time_well_before_it_runs_out() -> None:
    actions = Life().run(1000, 1090, _grows)
    extended = [action for action in actions if _told([action], "EXTEND_TIMEOUT_USEC")]
    assert len(extended) == 1 + 90 // EXTEND_EVERY
    assert _told(extended, "EXTEND_TIMEOUT_USEC") == str(int(EXTEND_BY * 1e6))
    assert EXTEND_BY > 10 * EXTEND_EVERY


def test_health_is_asked_again_after_each_answer_ever_less_often() -> None:
    life = Life()
    assert AskServer("health") in life.tick(1000.1)
    assert AskServer("health") not in life.tick(1003.0)  # not answered yet
    for _ in range(9):
        life.answered(1010.0, REFUSED)
    assert AskServer("health") not in life.tick(1011.9)
    assert AskServer("health") in life.tick(1012.0)


def test_ready_is_told_once() -> None:
    life = Life()
    actions = life.answered(1200.0, HEALTHY)
    assert _told(actions, "READY") == "1"
    assert _told(actions, "STATUS") == f"ready, serving demo on {URL}"
    assert "ready after 3 min 20 s" in _said(actions)
    assert _told(life.answered(1201.0, HEALTHY), "READY") is None
    assert life.it.phase == "ready"


def test_vllm_is_ready_when_it_has_made_a_token() -> None:
    life = Life(VLLM)
    assert life.answered(1200.0, HEALTHY) == [AskServer("token")]
    assert life.it.phase == "warming-up"
    assert life.answered(1201.0, HEALTHY) == []  # the request is sent once
    assert _told(life.answered(1230.0, HEALTHY, "token"), "READY") == "1"


def test_a_model_that_makes_no_tokens_is_ready_all_the_same() -> None:
    life = Life(VLLM)
    life.answered(1200.0, HEALTHY)
    actions = life.answered(1201.0, GONE, "token")
    assert _told(actions, "READY") == "1"
    assert "returns HTTP 404" in _said(actions)


def test_a_first_request_that_breaks_off_is_sent_again() -> None:
    life = Life(VLLM)
    life.answered(1200.0, HEALTHY)
    assert life.answered(1201.0, NOTHING, "token") == []
    assert life.answered(1203.0, HEALTHY) == [AskServer("token")]


def test_a_server_that_fails_at_its_first_request_is_not_ready_and_is_asked_again() -> None:
    life = Life(VLLM)
    life.answered(1010.0, HEALTHY)
    assert "returns HTTP 500: retrying" in _said(life.answered(1011.0, FAILED, "token"))
    assert life.it.phase == "warming-up"
    assert life.answered(1012.0, HEALTHY) == [AskServer("token")]
    assert life.answered(1013.0, FAILED, "token") == []  # the failure is logged once
    life.answered(1014.0, HEALTHY)
    assert _told(life.answered(1020.0, HEALTHY, "token"), "READY") == "1"


def test_a_server_that_fails_at_every_first_request_is_ended_in_time() -> None:
    life = Life(VLLM)
    now = 1010
    while life.it.phase != "stopping" and now < 2000:
        now += 1
        for action in life.tick(now):
            if isinstance(action, AskServer):
                if AskServer("token") in life.answered(now, HEALTHY):
                    life.answered(now, FAILED, "token")
            elif action is Instruction.LOOK:
                life.it.looked(now, now, _grows(now))
    assert life.it.cause == "hang"
    assert life.it.reason.endswith("(hang_timeout); the last returns HTTP 500")
    assert 1100 <= now <= 1130


def test_a_model_that_says_it_makes_no_tokens_with_501_is_ready() -> None:
    life = Life(VLLM)
    life.answered(1200.0, HEALTHY)
    assert _told(life.answered(1201.0, Answer("returns HTTP 501", status=501), "token"), "READY") == "1"


def test_a_first_request_that_is_never_answered_is_a_hang_however_busy_it_is() -> None:
    life = Life(VLLM)
    life.answered(1010.0, HEALTHY)
    actions = life.run(1011, 1200, _grows)
    assert life.it.cause == "hang"
    assert "no token was generated within 1 min 40 s" in life.it.reason
    assert Instruction.DUMP in actions


def test_a_start_that_takes_too_long_is_ended_as_a_failure() -> None:
    life = Life()
    life.answered(1300.0, Answer("returns HTTP 503"))
    actions = life.tick(1600.0)
    assert _told(actions, "STATUS") == f"not ready within 10 min (start_timeout): {URL}/health returns HTTP 503"
    assert life.it.cause == "start-timeout"
    assert SendSignal(signal.SIGTERM) in actions
    assert life.tick(1602.0) == [SendSignal(signal.SIGTERM)]
    assert _quit(life.exited(1603.0, EXIT_0)) == 1


def test_a_start_in_which_nothing_moves_is_ended_and_says_since_when() -> None:
    life = Life()
    actions = life.run(1000, 1500)
    assert (life.it.cause, life.it.phase) == ("stall", "stopping")
    assert life.it.reason.startswith("no progress for 5 min while starting (stall_timeout): ")
    assert Instruction.DUMP in actions
    assert SendSignal(signal.SIGTERM) not in actions
    assert _told(actions, "STATUS") is not None


def test_a_start_in_which_anything_moves_goes_on() -> None:
    life = Life()
    life.run(1000, 1590, _grows)
    assert life.it.phase == "starting"


def _spins(now: float) -> tuple[Process, ...]:
    return (WORKER._replace(cpu=now), WORKER._replace(pid=13, cpu=now))


def _faults(now: float) -> tuple[Process, ...]:
    return (WORKER._replace(cpu=now, faults=int(now) * 5000), WORKER._replace(pid=13, cpu=now))


WAITING = b"No available shared memory broadcast block found in 60 seconds. This typically happens when some processes are hanging.\n"


def _waiting(
    processes: Callable[[float], tuple[Process, ...]], *, cards: CardUsage = NO_CARDS, minutes: int = 9, says: bool = True
) -> Life:
    """Return a start of so many minutes; with `says`, its engine reports each minute that a worker does not answer."""
    life = Life(VLLM)
    for now in range(1001, 1001 + minutes * 60):
        if says and now % 60 == 0:
            life.it.printed(WAITING, float(now), float(now))
        life.tick(float(now))
        life.it.looked(float(now), float(now), processes(float(now)), cards)
        if life.it.phase == "stopping":
            break
    return life


@pytest.mark.parametrize(("cards", "says"), [(NO_CARDS, True), (CardUsage(1 << 30, 1.0), False), (CardUsage(1 << 30, 0.99), True)])
def test_a_start_that_spins_is_ended_and_says_by_what_that_is_known(cards: CardUsage, says: bool) -> None:  # noqa: FBT001 - a table
    life = _waiting(_spins, cards=cards, says=says)
    assert life.it.cause == "stall"
    assert "its processes wait for each other, since " in life.it.reason
    assert ("repeatedly" in life.it.reason) == says
    assert ("every GPU in use is" in life.it.reason) == (cards.busy is not None)
    assert " s of CPU time, no new output since " in life.it.reason


def test_the_stacks_of_those_who_spin_are_asked_for() -> None:
    life = _waiting(_spins, minutes=5)
    actions: list[Action] = []
    for now in range(1300, 1500):
        actions += [*life.tick(float(now)), *life.it.looked(float(now), float(now), _spins(float(now)))]
        if now % 60 == 0:
            life.it.printed(WAITING, float(now), float(now))
    assert Instruction.DUMP in actions
    assert actions.index(Instruction.DUMP) < actions.index(Instruction.KILL)


@pytest.mark.parametrize(
    ("processes", "cards", "says"),
    [
        (_spins, NO_CARDS, False),  # it computes or quantizes: nothing shows that it waits
        (_spins, CardUsage(1 << 30, 0.5), False),
        (_faults, NO_CARDS, True),  # compiles
        (_faults, CardUsage(1 << 30, 1.0), True),  # tunes kernels
        (_grows, CardUsage(1 << 30, 1.0), True),
    ],
)
def test_a_long_phase_that_gets_on_is_not_ended(processes: Callable[[float], tuple[Process, ...]], cards: CardUsage, says: bool) -> None:  # noqa: FBT001 - a table
    assert _waiting(processes, cards=cards, says=says).it.cause == ""


def test_a_slow_step_that_is_told_of_once_is_not_waited_for_in_vain() -> None:
    life = Life(VLLM)
    for now in range(1001, 1590):
        if now % 300 == 0:
            life.it.printed(WAITING, float(now), float(now))
        life.it.looked(float(now), float(now), _spins(float(now)))
    assert life.it.cause == ""


def test_a_stopped_worker_whom_others_wait_for_is_named() -> None:
    life = _waiting(lambda now: (WORKER._replace(cpu=now), WORKER._replace(pid=13, state="T")), says=False)
    assert life.it.cause == "stall"
    assert "its process VLLM::Worker_TP (13) is stopped" in life.it.reason


def test_a_start_that_takes_too_long_and_spins_says_so_and_where() -> None:
    """This happens if stall_timeout is as long as start_timeout."""
    life = Life(VLLM._replace(stall_timeout=1e6))
    life.answered(1000.0, REFUSED)
    actions: list[Action] = []
    for now in range(1001, 1602):
        if now % 60 == 0:
            life.it.printed(WAITING, float(now), float(now))
        actions += [*life.tick(float(now)), *life.it.looked(float(now), float(now), _spins(float(now)))]
    assert life.it.cause == "start-timeout"
    assert life.it.reason.startswith("not ready within 10 min (start_timeout): ")
    assert "; its processes wait for each other, since " in life.it.reason
    assert Instruction.DUMP in actions


def test_requests_without_a_token_are_a_hang_however_the_workers_spin() -> None:
    life = _serving(VLLM)
    life.answered(1201.0, HEALTHY._replace(figures={RUNNING: 1.0, TOKENS: 5.0}), "metrics")
    for now in range(1202, 1400):
        life.tick(float(now))
        life.it.looked(float(now), float(now), _spins(float(now)))
        life.answered(float(now), HEALTHY._replace(figures={RUNNING: 1.0, TOKENS: 5.0}), "metrics")
    assert (life.it.cause, "no token counter moves" in life.it.reason) == ("hang", True)


def test_a_freeze_does_not_count_as_a_stall() -> None:
    life = Life()
    life.run(1000, 1010)
    life.tick(1590.0)
    assert life.it.looked(1590.0, 1590.0, (WORKER,)) == []
    assert life.it.phase == "starting"


# --- ending


@pytest.mark.parametrize(("status", "code"), [(EXIT_0, 1), (EXIT_1, 1), (EXIT_2, 2), (126 << 8, 2), (EXIT_127, 2), (KILLED, 1), (2, 1)])
def test_an_end_before_ready_is_tried_again_unless_it_never_can_work(status: int, code: int) -> None:
    assert _quit(Life().exited(1004.0, status)) == code


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("ValueError: No available memory for the cache blocks. Try increasing", 2, "leave no memory for the KV cache"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", 1, "a GPU ran out of memory"),
        ("ValueError: it is Monday", 2, "ValueError: it is Monday"),
        ("RuntimeError: it is Monday", 1, "RuntimeError: it is Monday"),
    ],
)
def test_what_it_said_decides_whether_it_can_ever_work(line: str, code: int, said: str) -> None:
    actions = Life().exited(1004.0, EXIT_1, line, "RuntimeError: Engine core initialization failed. See root cause above.")
    assert _quit(actions) == code
    assert said in _said(actions)


LOST = "RuntimeError: card 3 was lost after 12.5 s, process 4711, address 0x7fff3863c17, 3.2 GiB free"
LOST_AGAIN = "RuntimeError: card 1 was lost after 9 s, process 815, address 0x7ffe0, 180 MiB free"


@pytest.mark.parametrize(
    ("before", "line", "code"),
    [(LOST, LOST_AGAIN, 2), ("", LOST, 1), ("RuntimeError: another", LOST, 1), ("", "no error at all", 1), (LOST, "no error at all", 1)],
)
def test_the_same_error_twice_running_ends_the_tries(before: str, line: str, code: int) -> None:
    """Process ids, times, addresses and sizes in the error make no difference."""
    life = Life(before=before)
    assert _quit(life.exited(1004.0, EXIT_1, line)) == code
    assert ("the same error as at the previous start" in life.it.reason) == (code == 2)


def test_one_that_served_is_tried_again_whatever_was_before() -> None:
    life = _serving(before=LOST)
    assert _quit(life.exited(4800.0, EXIT_1, LOST)) == 1


def test_an_end_before_ready_says_what_the_server_said_last() -> None:
    life = Life()
    actions = life.exited(1004.0, EXIT_1, "ValueError: it is Monday")
    expected = "demo exited before it was ready (exit status 1): ValueError: it is Monday."
    assert _told(actions, "STATUS") == expected
    assert [action for action in actions if isinstance(action, LogLine)][-1] == LogLine(expected, level=3)
    assert (life.it.cause, life.it.error) == ("exited", "ValueError: it is Monday")
    assert life.it.reason == "the server ended after 4 s, before it was ready (exit status 1)"


def test_whatever_the_server_left_is_killed_before_we_end() -> None:
    actions = _serving().exited(4800.0, EXIT_0)
    assert actions.index(Instruction.KILL) < actions.index(Quit(1))


@pytest.mark.parametrize("status", [EXIT_0, EXIT_1, EXIT_2, KILLED])
def test_an_end_while_serving_is_always_a_failure_to_try_again(status: int) -> None:
    actions = _serving().exited(4800.0, status)
    assert _quit(actions) == 1
    assert "ended after serving for 1 h" in _said(actions)


def test_nothing_follows_the_end() -> None:
    life = Life()
    life.exited(1004.0, EXIT_1)
    assert life.tick(9e9) == []
    assert life.answered(1005.0, HEALTHY) == []
    assert life.it.due is None


def test_stopping_gives_requests_their_time_then_kills() -> None:
    life = _serving()
    actions = life.stop(2000.0)
    assert _told(actions, "STOPPING") == "1"
    assert _told(actions, "STATUS") == "stopping: running requests have 2 min"
    assert int(_told(actions, "EXTEND_TIMEOUT_USEC") or 0) > 120_000_000
    assert SendSignal(signal.SIGTERM) in actions
    assert life.tick(2119.0) == []
    assert life.it.due == 2120.0
    assert Instruction.KILL in life.tick(2120.0)
    assert _quit(life.exited(2120.1, KILLED)) == 0
    assert life.it.cause == "stopped"


def test_a_stop_that_makes_room_says_for_which_model() -> None:
    life = _serving()
    assert _told(life.stop(2000.0, "coder"), "STATUS") == "stopping to make room for coder: running requests have 2 min"
    assert _quit(life.exited(2001.0, EXIT_0)) == 0
    assert life.it.cause == "room"


def test_stopping_while_loading_asks_twice_and_does_not_wait_for_requests() -> None:
    life = Life()
    assert SendSignal(signal.SIGTERM) in life.stop(1005.0)
    assert life.tick(1006.0) == []
    assert life.tick(1007.0) == [SendSignal(signal.SIGTERM)]
    assert life.tick(1024.0) == []
    assert Instruction.KILL in life.tick(1025.0)


def test_a_short_grace_goes_before_the_second_request() -> None:
    life = Life(Launch("demo", stop_grace=1))
    life.stop(1005.0)
    assert Instruction.KILL in life.tick(1006.0)
    assert life.it.due == 1008.0


def test_what_does_not_die_is_left_to_systemd() -> None:
    life = _serving()
    life.stop(2000.0)
    life.tick(2120.0)
    assert life.tick(2121.0) == []
    assert _quit(life.tick(2122.0)) == 0
    assert life.it.phase == "ended"


def test_a_stop_while_a_failed_start_is_ended_is_a_stop() -> None:
    life = Life()
    life.tick(1600.0)
    assert life.stop(1601.0) == []
    assert _quit(life.exited(1602.0, EXIT_1)) == 0


def test_a_second_request_to_stop_changes_nothing() -> None:
    life = _serving()
    life.stop(2000.0)
    assert life.stop(2100.0) == []
    assert life.it.due == 2120.0


def test_a_hung_server_has_time_to_say_where_even_when_its_first_process_dies_of_it() -> None:
    life = Life()
    life.run(1000, 1500)
    due = life.it.due
    assert due is not None
    assert life.exited(due - 2, 6) == []
    for tenth in range(19, 0, -1):  # other events may wake up the loop meanwhile
        assert life.tick(due - tenth / 10) == []
    actions = life.tick(due)
    assert Instruction.KILL in actions
    assert _quit(actions) == 1


def test_a_server_that_cannot_be_started_is_a_failure_with_its_cause() -> None:
    life = Life()
    actions = life.it.not_started(1000.0, "Resource temporarily unavailable")
    assert _quit(actions) == 1
    assert (life.it.cause, life.it.reason) == ("no-start", "the server could not be started: Resource temporarily unavailable")
    assert _told(actions, "STATUS") == life.it.reason


def test_an_end_is_told_though_the_package_was_replaced_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm_safe.launch.end_sentence", None)
    actions = Life().exited(1004.0, EXIT_1, "ValueError: it is Monday")
    assert "exited (exit status 1)." in _said(actions)
    assert _quit(actions) == 1


# --- waiting


def test_a_restart_waits_its_pause_then_starts() -> None:
    life = Life(VLLM._replace(restart=2, pause=120.0))
    actions = life.tick(1000.0)
    assert (_told(actions, "STATUS") or "").startswith("automatic restart 2: waiting 2 min")
    assert _told(actions, "EXTEND_TIMEOUT_USEC")
    assert Instruction.START not in life.run(1001, 1119)
    assert life.it.phase == "waiting"
    assert life.tick(1120.0) == [NotifySystemd({"EXTEND_TIMEOUT_USEC": str(int(EXTEND_BY * 1e6))}), Instruction.START]
    assert life.it.phase == "starting"
    assert Instruction.LOOK in life.tick(1121.0)


def test_a_stop_ends_the_wait_at_once() -> None:
    life = Life(VLLM._replace(pause=120.0))
    assert _quit(life.stop(1001.0)) == 0
    assert life.it.cause == "stopped"


# --- serving


def test_vllm_is_asked_for_health_and_counters_any_other_for_its_health() -> None:
    for launch, asked in ((VLLM, ["health", "metrics"]), (OTHER, ["health"])):
        life = _serving(launch)
        assert [action.what for action in life.tick(1211.0) if isinstance(action, AskServer)] == asked
        assert not [action for action in life.tick(1300.0) if isinstance(action, AskServer)]  # before the answer


def test_an_idle_server_is_never_ended() -> None:
    life = _serving(OTHER)
    for now in range(1200, 10_000, 5):
        for action in life.tick(float(now)):
            assert isinstance(action, AskServer) or action is Instruction.LOOK
            if isinstance(action, AskServer):
                life.answered(float(now), HEALTHY, action.what)
    assert life.it.phase == "ready"


def test_a_model_that_a_request_started_ends_when_nobody_asks() -> None:
    idle = HEALTHY._replace(figures={RUNNING: 0.0, "vllm:num_requests_waiting": 0.0, FINISHED: 3.0})
    by_hand, asked = _serving(VLLM._replace(idle_timeout=300.0)), _serving(VLLM._replace(request=7, idle_timeout=300.0))
    assert (by_hand.answered(9000.0, idle, "metrics"), by_hand.it.idle) == ([], None)
    assert asked.answered(1300.0, idle, "metrics") == []
    ending = asked.answered(1600.0, idle, "metrics")
    assert "stopped: no request for 5 min (idle_timeout)" in _said(ending)
    assert SendSignal(signal.SIGTERM) in ending
    assert _quit(asked.exited(1610.0, EXIT_0)) == EXIT_IDLE
    assert (asked.it.cause, asked.it.reason) == ("idle", "stopped: no request for 5 min (idle_timeout)")


def test_a_server_without_counters_ends_when_nobody_is_connected() -> None:
    life = _serving(OTHER._replace(request=7, idle_timeout=300.0, port=18000))
    assert life.it.connected(1500.0, 1500.0, 1) == []
    assert life.it.connected(1700.0, 1700.0, 0) == []
    assert "stopped: no request for 5 min" in _said(life.it.connected(1800.0, 1800.0, 0))
    assert life.it.connected(2200.0, 2200.0, 0) == []


def test_requests_without_a_token_are_a_hang() -> None:
    life = _serving(VLLM)
    figures = HEALTHY._replace(figures={RUNNING: 2.0, TOKENS: 7.0})
    now = 1200.0
    while life.it.phase == "ready" and now < 2000:
        now += 5
        for action in life.tick(now):
            if isinstance(action, AskServer):
                life.answered(now, figures, action.what)
    assert life.it.cause == "hang"
    assert life.it.reason.startswith("2 requests run and no token counter moves, for ")
    assert 1300 <= now <= 1330


def test_the_watchdog_is_fed_four_times_as_often_as_it_must() -> None:
    life = Life(watchdog=40.0)
    fed = [action for action in life.run(1000, 1039, _grows) if _told([action], "WATCHDOG")]
    assert len(fed) == 4
    life.answered(1040.0, HEALTHY)
    assert _told(life.tick(1041.0), "WATCHDOG") == "1"
    life.stop(1050.0)
    assert _told(life.tick(1051.0), "WATCHDOG") == "1"


# --- several machines

SPREAD = VLLM._replace(nodes=("gpu1", "gpu2"), nodes_port=29500)
SECOND = SPREAD._replace(rank=1, health="", metrics="", completions="")


def _met(life: Life, nodes: NodeGroup, now: float) -> list[Action]:
    return life.it.met(now, now, nodes)


def _together(launch: Launch) -> tuple[Life, NodeGroup]:
    """Return a server that was just started, and the other machines as this one sees them."""
    life, nodes = Life(launch), NodeGroup(launch, {}, 1000.0)
    assert Instruction.MEET in life.tick(1000.0)
    if launch.rank:
        nodes.connected()
        nodes.received("gpu1", Go())
    else:
        nodes.greet(Hello("demo", "gpu2", {}))
    started = _met(life, nodes, 1001.0)
    assert started[-1] is Instruction.START
    assert (Instruction.GO in started) is (launch.rank == 0)
    nodes.started = True
    return life, nodes


def test_it_waits_for_the_others_without_a_limit_and_says_for_whom() -> None:
    life, nodes = Life(SPREAD), NodeGroup(SPREAD, {}, 1000.0)
    assert life.it.phase == "waiting"
    assert Instruction.MEET in life.tick(1000.0)
    assert _told(_met(life, nodes, 1000.0), "STATUS") == "waiting for gpu2"
    assert _met(life, nodes, 1001.0) == []
    days = 1000.0 + 3 * 86400
    assert Instruction.START not in life.tick(days)
    assert life.it.phase == "waiting"
    assert _said(life.stop(days)) == "stopped while waiting for the other machines"


def test_the_pause_of_a_restart_comes_before_the_wait() -> None:
    life = Life(SPREAD._replace(pause=120.0, restart=2))
    assert Instruction.MEET not in life.tick(1000.0)
    assert Instruction.MEET in life.tick(1120.0)


def test_a_machine_that_is_not_the_first_asks_nothing_and_is_ready_when_the_first_is() -> None:
    life, nodes = _together(SECOND)
    assert not [action for action in life.run(1001, 1100, _grows) if isinstance(action, AskServer)]
    nodes.received("gpu1", Alive("warming-up", 0.0, ""))
    assert _met(life, nodes, 1100.0) == []
    nodes.received("gpu1", Alive("ready", 0.0, ""))
    ready = _met(life, nodes, 1101.0)
    assert (_told(ready, "READY"), _told(ready, "STATUS")) == ("1", "ready, serving demo with gpu1, which answers")
    assert not [action for action in life.run(1102, 1300) if isinstance(action, AskServer | Quit)]


def test_a_process_that_is_stopped_is_noticed_where_nobody_answers() -> None:
    life, nodes = _together(SECOND)
    nodes.received("gpu1", Alive("ready", 0.0, ""))
    _met(life, nodes, 1001.0)
    life.run(1002, 1300, lambda _: (WORKER._replace(state="T"),))
    assert (life.it.cause, "is stopped" in life.it.reason) == ("hang", True)


def test_another_machine_that_ends_ends_this_one() -> None:
    life, nodes = _together(SPREAD)
    nodes.received("gpu2", Farewell("gpu2 ended: no progress", never=False))
    ending = _met(life, nodes, 1010.0)
    assert (life.it.cause, life.it.reason) == ("node", "gpu2 ended: no progress")
    assert (_told(ending, "STATUS"), SendSignal(signal.SIGTERM) in ending) == ("gpu2 ended: no progress", True)
    assert _met(life, nodes, 1011.0) == []
    assert Instruction.KILL in life.tick(1010.0 + NODE_GRACE)  # whatever stop_grace is: its workers may wait for the others for ever
    assert _quit(life.exited(1016.0, KILLED)) == 1


def test_a_machine_that_is_silent_is_told_as_a_failure_of_the_network() -> None:
    life, nodes = _together(SPREAD)
    for now in range(1001, 1001 + int(SILENT) + 1):
        nodes.pass_time(float(now))
    _met(life, nodes, 1040.0)
    assert (life.it.cause, life.it.reason.startswith("gpu2 has not been heard from")) == ("network", True)


def test_what_can_never_work_anywhere_is_not_tried_again() -> None:
    life, nodes = Life(SPREAD), NodeGroup(SPREAD, {"the engine": "vllm 0.32.0"}, 1000.0)
    life.tick(1000.0)
    nodes.greet(Hello("demo", "gpu2", {"the engine": "vllm 0.31.0"}))
    ended = _met(life, nodes, 1001.0)
    assert _quit(ended) == 2
    assert _told(ended, "STATUS") == "the engine differs: vllm 0.32.0 on gpu1, vllm 0.31.0 on gpu2"


def test_a_start_is_no_stall_while_another_machine_moves() -> None:
    for others, cause in ((5.0, ""), (TIMES["stall_timeout"], "stall")):
        life, nodes = _together(SPREAD)
        nodes.received("gpu2", Alive("loading", others, ""))
        _met(life, nodes, 1001.0)
        life.run(1002, 1400)
        assert life.it.cause == cause
