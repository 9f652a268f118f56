"""Tests of the text of a bundle."""

from __future__ import annotations

import re

from vllm_safe.bundle.bundle_text import MOST, BundlePart, bundle_text
from vllm_safe.bundle.identity import Identity

ALICE = Identity(users=frozenset({"alice"}))
CHECK = BundlePart("This machine", "vllm-safe check", "one\ntwo of alice\n")


def test_what_is_in_it_is_said_first() -> None:
    text = bundle_text("bundle of x", [CHECK, BundlePart("Plan", "vllm-safe plan", absent="no such command")], ALICE)
    before, part = text.split("\n==== ")
    assert before.splitlines()[0] == "bundle of x"
    assert re.search(r"^  This machine +2 +18$", before, re.MULTILINE)
    assert re.search(r"^  Plan +none: no such command$", before, re.MULTILINE)
    assert part == "This machine (vllm-safe check)\none\ntwo of [user]\n"


def test_what_was_left_out_is_counted() -> None:
    text = bundle_text("x", [CHECK, BundlePart("b", "c", "alice alice\n10.0.0.7")], ALICE)
    assert re.search(r"^  \[user\] +3 times +names of people", text, re.MULTILINE)
    assert re.search(r"^  \[address\] +once +IP", text, re.MULTILINE)
    assert re.search(r"^  \[host\] +never +", text, re.MULTILINE)


def test_a_heading_is_cleaned_too() -> None:
    assert "alice" not in bundle_text("made for alice", [], ALICE)


def test_it_fits_into_an_issue_and_says_what_did_not() -> None:
    long = "\n".join(f"line {number} " + "x" * 60 for number in range(3000))
    parts = [
        BundlePart("Checks", "c", long),
        BundlePart("Journal", "j", long, is_log=True),
        BundlePart("Kernel", "k", "short", is_log=True),
    ]
    text = bundle_text("x", parts, Identity())
    assert MOST * 0.9 < len(text) <= MOST
    checks, journal, kernel = (part.splitlines() for part in text.split("\n==== ")[1:])
    assert checks[1].startswith("line 0 ")
    assert journal[-1].startswith("line 2999 ") or journal[-2].startswith("line 2999 ")
    assert kernel[1] == "short"
    left = dict(re.findall(r"^  (\d+) (older|last) lines of: ", text, re.MULTILINE))
    assert sorted(left.values()) == ["last", "older"]
    assert len([line for line in checks if line.startswith("line ")]) + int(next(n for n, which in left.items() if which == "last")) == 3000


def test_a_part_that_printed_nothing_is_not_passed_over() -> None:
    assert "none: it printed nothing" in bundle_text("x", [BundlePart("a", "b", " \n")], Identity())


def test_nothing_steers_a_terminal_and_no_line_is_endless() -> None:
    text = bundle_text("x", [BundlePart("a", "b", "\x1b[2Jred\n" + "y" * 5000)], Identity())
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) < 700
