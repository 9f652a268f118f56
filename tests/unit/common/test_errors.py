"""Errors and findings contain no characters that control the terminal."""

from __future__ import annotations

from vllm_safe.common.errors import Failure
from vllm_safe.common.findings import failed, passed, warned


def test_a_failure_quotes_nothing_that_steers_a_terminal() -> None:
    failure = Failure("the hub says \x1b[2J\x07\x9bc\udcff", hint="one\ntwo \x1bc")
    assert failure.message == str(failure) == "the hub says ?[2J??c?"
    assert failure.hint == "one\ntwo ?c"


def test_a_finding_neither() -> None:
    for finding in (passed("\x1bc"), warned("\x1bc", "\x1bc"), failed("\x1bc", "\x1bc")):
        assert "\x1b" not in finding.what + finding.do_next
