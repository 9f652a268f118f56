"""The choice of the cause among many errors: the first of its chain and its process, whole, wherever it is in the log."""

from __future__ import annotations

import pytest

from tests.ends.judge import CASES, FOLDER
from vllm_safe.causes.cause import find_cause
from vllm_safe.causes.death_patterns import describe_death, signal_of

ENGINE = "(EngineCore pid=71) ERROR 11-23 22:20:57 [core.py:1512] "
API = "(APIServer pid=40) "
DIED = f"{API}RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {{'EngineCore': 1}}"
DEAD = f"{API}ERROR 11-23 22:20:57 [async_llm.py:654] vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue."


def traceback(prefix: str, *errors: str, link: str = "The above exception was the direct cause of the following exception:") -> list[str]:
    lines: list[str] = []
    for number, error in enumerate(errors):
        lines += ["", link, ""] if number else []
        lines += ["Traceback (most recent call last):", '  File "/x/y.py", line 7, in run', "    run()", *error.split("\n")]
    return [f"{prefix}{line}" for line in lines]


def cause(*lines: str, head: tuple[str, ...] = (), served: bool = False) -> str:
    message = find_cause(head, lines, served=served)
    return message.text if message else ""


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([*traceback(ENGINE, "ValueError: it is Monday"), DIED], "ValueError: it is Monday"),
        (traceback("", "huggingface_hub.errors.SomeModeIsOn: no"), "huggingface_hub.errors.SomeModeIsOn: no"),
        (traceback("", "acme.OutOfLuck"), "acme.OutOfLuck"),
        ([*traceback(ENGINE, "RuntimeError: first", "RuntimeError: second"), DIED], "RuntimeError: first"),
        (
            traceback(
                "", "KeyError: 'x'", "ValueError: no model x", link="During handling of the above exception, another exception occurred:"
            ),
            "ValueError: no model x",
        ),
        (
            traceback(
                "", "OSError: first", "TypeError: second", link="During handling of the above exception, another exception occurred:"
            ),
            "OSError: first",
        ),
        (
            traceback("", "OSError: x", "RuntimeError: Ninja build failed. Ninja output:\nno"),
            "RuntimeError: Ninja build failed. Ninja output:\nno",
        ),
        (traceback("", "ValueError: one of:\n- ray\n- mp"), "ValueError: one of:\n- ray\n- mp"),
        (
            traceback("", "pydantic.ValidationError: 1 validation error for X\n  Value error, wrong\n\n  more"),
            "pydantic.ValidationError: 1 validation error for X\nValue error, wrong",
        ),
        (traceback("  | ", "ExceptionGroup: two (1 sub-exception)"), "ExceptionGroup: two (1 sub-exception)"),
        (["terminate called after throwing an instance of 'c10::Error'", "  what():  CUDA error: misaligned address"], None),
        (["panic: it is Monday", "", "goroutine 1 [running]:"], "panic: it is Monday"),
        (["thread 'main' panicked at src/main.rs:3:5:", "it is Monday"], "thread 'main' panicked at src/main.rs:3:5:\nit is Monday"),
        (["Error: it is Monday", "    at run (x.js:1:1)", "", "Node.js v20.1.0"], "Error: it is Monday\nat run (x.js:1:1)"),
        (["\x1b[31mfatal: it is Monday\x1b[0m", "bye"], "fatal: it is Monday"),
        (["\x1b]0;a title\x07\x1b[2K\x1b[1A\x1b(Bfatal: it is Monday\x1b[?25h", "bye"], "fatal: it is Monday"),
        (["fatal: it is Monday\x1b]0;a title without an end", "bye"], "fatal: it is Monday\x1b]0;a title without an end"),
        (["2026/11/23 22:10:48 main.go:7: Error: it is Monday"], None),
        (["0 errors: fine", "bye"], ""),
    ],
)
def test_the_cause_is_found(lines: list[str], expected: str | None) -> None:
    found = cause(*lines)
    assert found == expected if expected is not None else "Monday" in found or "misaligned" in found


def test_of_several_workers_the_first_in_time_counts() -> None:
    first, second = (
        traceback(f"(Worker_TP{rank} pid={rank}) ERROR 11-23 22:20:57 [m.py:953] ", f"RuntimeError: of {rank}") for rank in (3, 1)
    )
    mixed = [line for pair in zip(first, second, strict=True) for line in pair]
    assert cause(*mixed, DIED) == "RuntimeError: of 3"


def test_echoes_are_looked_through() -> None:
    echoes = [
        *traceback(
            "(Worker pid=2) ERROR 11-23 22:20:58 [m.py:953] ", "RuntimeError: [gloo/pair.cc:553] Connection closed by peer [127.0.0.1]:1722"
        ),
        *traceback("", "asyncio.exceptions.CancelledError"),
        *traceback(ENGINE, "Exception: WorkerProc initialization failed due to an exception. See stack trace for root cause."),
        DIED,
    ]
    assert cause(*traceback("(Worker pid=1) ERROR 11-23 22:20:57 [m.py:953] ", "RuntimeError: mine"), *echoes) == "RuntimeError: mine"
    message = find_cause((), echoes, served=False)
    assert message is not None
    assert (message.code, message.kind) == ("worker-died", "silent")


def test_a_death_with_a_signal_goes_before_one_without() -> None:
    died = f"{ENGINE}Worker proc VllmWorker-0 died unexpectedly (exit code: -9), shutting down executor."
    silent = traceback(ENGINE, "RuntimeError: Executor failed.")
    message = find_cause((), [*silent, died, DIED], served=False)
    assert message is not None
    assert (message.kind, signal_of(message.figures)) == ("killed", "SIGKILL")


def test_a_death_whose_status_vllm_does_not_know_yet_has_a_process() -> None:
    died = f"{ENGINE}Worker proc VllmWorker-1 died unexpectedly (exit code: None), shutting down executor."
    message = find_cause((), [died], served=True)
    assert message is not None
    assert describe_death(message.kind, message.figures) == "its process VllmWorker-1 died without an error message"


def test_a_warning_is_no_cause() -> None:
    warned = ["warning: failed to mlock 7-byte buffer: Cannot allocate memory", "/x.py:7: UserWarning: cannot find nvcc"]
    assert cause(*warned, "main: error: mine") == "main: error: mine"


def test_what_refused_to_fork_is_said_where_the_error_does_not() -> None:
    """The same holds for a refused lock: both errors are EAGAIN."""
    again = "BlockingIOError: [Errno 11] Resource temporarily unavailable"
    for line, code in (("self.pid = _fork_exec(args)", "no-threads"), ("fcntl.flock(file.fileno(), flags)", "locked"), ("s.recv(9)", "")):
        message = find_cause(
            (), ["Traceback (most recent call last):", '  File "/x.py", line 7, in f', f"    {line}", "    ^^^^", again], served=False
        )
        assert message is not None
        assert message.code == code


def test_what_a_worker_failed_of_is_in_quotes() -> None:
    said = "RuntimeError: Worker failed with error 'it is Monday', please check the stack trace above for the root cause"
    assert cause(*traceback(ENGINE, said), DIED) == "it is Monday"


def test_a_clients_error_is_not_what_it_died_of() -> None:
    """It makes no difference whether a successful answer followed it."""
    client = [
        f"{API}ERROR 11-23 22:00:00 [serving.py:302] Error in preprocessing prompt inputs",
        *traceback(f"{API}ERROR 11-23 22:00:00 [serving.py:302] ", "ValueError: This model's maximum context length is 2048 tokens."),
        'INFO:     127.0.0.1:5 - "POST /v1/completions HTTP/1.1" 400 Bad Request',
    ]
    death = [*traceback(ENGINE, "RuntimeError: mine"), DEAD]
    assert cause(*client, *death, served=True) == "RuntimeError: mine"
    assert cause(*client, DEAD, served=True) == cause(DEAD, served=True)
    other = [line.removeprefix(API) for line in client]
    assert cause(*other, *death, served=True) == "RuntimeError: mine"


def test_errors_that_were_survived_do_not_count() -> None:
    survived = traceback("", "ImportError: cannot import name 'flashy'")
    well = "(EngineCore pid=71) INFO 11-28 08:31:45 [model_runner.py:424] Model loading took 14.29 GiB memory and 2.083706 seconds"
    assert cause(*survived, well, *traceback(ENGINE, "RuntimeError: mine"), DIED) == "RuntimeError: mine"
    assert cause(*survived, "", well, "it is Monday") == "ImportError: cannot import name 'flashy'"  # there is no other error


def test_the_head_goes_before_the_tail() -> None:
    """Both the kept first lines of trouble and the last lines may contain errors."""
    head = tuple(traceback("", "RuntimeError: first"))
    assert cause(*traceback("", "RuntimeError: last"), head=head) == "RuntimeError: first"
    assert cause(*traceback("", "RuntimeError: last"), head=("an error, by the way",)) == "RuntimeError: last"


def test_what_the_main_process_wrote_down_goes_before_what_the_lines_say() -> None:
    """It had all of the lines, and `why` has the last ones only."""
    last = ["ValueError: said by the way, at the end"]
    message = find_cause((), last, served=False, recorded="torch.AcceleratorError: CUDA error: an illegal memory access was encountered")
    assert message is not None
    assert message.code == "gpu-fault"


@pytest.mark.parametrize("name", CASES)
def test_what_is_written_down_is_read_as_the_same_error(name: str) -> None:
    """Else `systemctl status` and `why`, which has the text alone, would say different things of one end."""
    lines, served = (FOLDER / f"{name}.txt").read_text(encoding="utf-8", errors="replace").splitlines(), bool(CASES[name].get("ready"))
    found = find_cause(lines[:200], lines[-200:], served=served)
    assert find_cause((), (), served=served, recorded=found.text if found else "") == found
