"""A skip is a failure where its tier is required (tests/conftest.py)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"
TESTS = """
import pytest

@pytest.mark.vm
def test_bed(): pytest.skip("no such program")

@pytest.mark.skip(reason="not here")
def test_unit(): pass

@pytest.mark.xfail(strict=True)
def test_known(): assert False
"""


@pytest.mark.parametrize(
    ("required", "code", "words"),
    [
        ("", 0, "2 skipped, 1 xfailed"),
        ("nspawn", 0, "2 skipped, 1 xfailed"),
        ("nspawn vm", 1, "tier 'vm' must run here"),
        ("unit", 1, "tier 'unit' must run here"),
    ],
)
def test_a_skip_fails_where_its_tier_is_required(tmp_path: Path, required: str, code: int, words: str) -> None:
    shutil.copy(CONFTEST, tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = vm\n")
    (tmp_path / "test_it.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)]
    environment = {**os.environ, "VLLM_SAFE_REQUIRE": required}
    done = subprocess.run(command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, words in done.stdout) == (code, True), done.stdout
