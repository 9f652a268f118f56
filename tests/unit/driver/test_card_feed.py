"""Tests of the program that prints what all cards do, each second, with a libnvidia-ml.so of our own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from vllm_safe.driver import driver_facts

PROGRAM = [sys.executable, "-I", "-B", str(driver_facts._PROGRAM), "feed"]
CARDS = """\
error 0
driver 580.159.04
cuda 13000
card 0000:0a:00.0 NVIDIA GeForce RTX 3060
  capability 8.6
  memory 12288 300
  busy 97
  draw 138
lost 0000:0b:00.0
"""


def environment(library: Path, answers: Path) -> dict[str, str]:
    return os.environ | {"LD_LIBRARY_PATH": str(library), "FAKE_NVML": str(answers)}


def test_a_line_a_second_until_nobody_reads(library: Path, tmp_path: Path) -> None:
    (tmp_path / "nvml.txt").write_text(CARDS)
    with subprocess.Popen(PROGRAM, stdout=subprocess.PIPE, env=environment(library, tmp_path / "nvml.txt")) as child:
        assert child.stdout
        lines = [json.loads(child.stdout.readline()) for _ in range(2)]
        child.stdout.close()
        assert child.wait(30) in {0, 120}, "120: Python found the pipe closed when it flushed for the last time"
    first, lost = lines[0]["cards"]
    assert lines[1] == lines[0]
    assert (first["busy"], first["draw"]) == (97, 138000)
    assert first["facts"]["name"] == "NVIDIA GeForce RTX 3060"
    assert lost == {"facts": {"name": "", "capability": [0, 0]}}


def test_a_driver_that_does_not_work_is_a_problem_and_the_end(library: Path, tmp_path: Path) -> None:
    done = subprocess.run(PROGRAM, capture_output=True, text=True, check=True, timeout=60, env=environment(library, tmp_path / "none"))
    said = json.loads(done.stdout)
    assert "Driver Not Loaded" in said["problem"]
    assert "vllm-safe check" in said["hint"]
    assert done.stderr == ""
