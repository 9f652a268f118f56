"""The program with which a scenario takes the guard's steps runs with the code as it is today."""

from __future__ import annotations

import subprocess
import sys

from tests.gpu import beside


def test_the_program_of_the_guards_steps_gets_as_far_as_a_step() -> None:
    """`a/b` is not a unit, so the step is refused and nothing is changed."""
    done = subprocess.run([sys.executable, "-c", beside._ACT, "a/b", "freeze"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("a/b is ")
