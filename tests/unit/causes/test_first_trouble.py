"""The first lines of a server's trouble are kept, within bounds, whatever follows."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_safe.causes.first_trouble import KEPT, LONGEST, QUIET, FirstTrouble


def kept(*chunks: bytes, serves: bool = False, pause: float = 0.0) -> list[str]:
    trouble = FirstTrouble()
    for number, chunk in enumerate(chunks):
        trouble.read_output(chunk, number * pause, serves=serves)
    return [line for line in trouble.lines() if line]


def test_all_from_the_first_word_of_trouble_on_is_kept() -> None:
    assert kept(b"fine\nRuntimeError: x\nand\n", b"more\n") == ["RuntimeError: x", "and", "more"]


def test_what_steers_a_terminal_is_left_out() -> None:
    assert kept(b"\x1b]0;title\x1b\\\x1b[2K\x1b[1;31mRuntimeError: x\x1b[0m\n") == ["RuntimeError: x"]


def test_where_chunks_are_cut_does_not_matter() -> None:
    text = b"fine\nRuntimeError: x\nmore"
    for at in range(len(text)):
        assert kept(text[:at], text[at:]) == ["RuntimeError: x", "more"]


def test_stacks_are_left_out_and_what_an_assertion_compared_is_not() -> None:
    stack = b'Traceback (most recent call last):\n  File "/x.py", line 7, in f\n    run()\n    ^^^^^\n    assert a == b\nAssertionError\n'
    assert kept(stack, b"frame #3: c10::f() + 0x4\n" * 9) == ["Traceback (most recent call last):", "    assert a == b", "AssertionError"]


def test_what_refused_to_fork_or_to_lock_is_kept() -> None:
    for line in (b"    self.pid = os.fork()", b"        fcntl.flock(fd, 6)"):
        assert line.decode() in kept(b"Traceback (most recent call last):\n    run()\n" + line + b"\nBlockingIOError: [Errno 11]\n")


@pytest.mark.parametrize("line", [b"(EngineCore pid=1) INFO 11-23 [x.py:1] error rate 0", b"WARNING 11-23 [x.py:1] failed to", b"fine"])
def test_what_is_harmless_opens_nothing(line: bytes) -> None:
    assert kept(line + b"\n") == []


def test_an_error_of_the_api_server_that_serves_opens_nothing() -> None:
    line = b"(APIServer pid=7) ERROR 11-23 [serving.py:1] Error in preprocessing prompt inputs\n"
    assert kept(line, serves=True) == []
    assert len(kept(line)) == 1


@pytest.mark.parametrize(
    "well", [b'INFO: 1.2.3.4:5 - "POST /v1/completions HTTP/1.1" 200 OK\n', b"INFO 11-28 [m.py:1] Model loading took 14.29 GiB memory\n"]
)
def test_a_word_that_it_is_well_closes_it(well: bytes) -> None:
    assert kept(b"ERROR: old\n", well, b"ERROR: new\n") == ["ERROR: new"]


def test_a_count_of_shards_is_no_such_word() -> None:
    """Test that it does not count as progress: tqdm prints its bar once more when the process dies."""
    assert kept(b"KeyError: 'x'\n", b"Loading safetensors checkpoint shards:  47% Completed | 7/15 [00:20<00:23]\n")[0] == "KeyError: 'x'"


def test_trouble_after_a_long_quiet_is_another_one() -> None:
    assert kept(b"ERROR: old\n", b"ERROR: new\n", pause=QUIET + 1) == ["ERROR: new"]
    assert kept(b"ERROR: old\n", b"ERROR: new\n", pause=QUIET - 1) == ["ERROR: old", "ERROR: new"]


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_any_bytes_are_kept_within_bounds(chunks: list[bytes]) -> None:
    kept(b"error\n", *chunks)


def test_a_flood_is_kept_within_bounds_and_costs_little() -> None:
    """A megabyte, the most that is searched per second (SIFTED), takes a small part of a second."""
    trouble = FirstTrouble()
    begun = time.process_time()
    for _ in range(16):
        trouble.read_output(b"x" * 3000 + b"\n" + b"an error, again and again\n" * 2400, 0.0, serves=False)
    assert time.process_time() - begun < 0.5
    assert sum(map(len, trouble.lines())) <= KEPT + LONGEST
