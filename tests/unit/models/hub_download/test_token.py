"""Tests that models, which run as the same user, cannot read the hub token from the memory of the program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import ctypes
from vllm_safe.models.as_engine.hub_download.download_command import _token
print(ctypes.CDLL(None).prctl(3), _token(), ctypes.CDLL(None).prctl(3))  # PR_GET_DUMPABLE
"""


def test_nobody_else_of_this_user_reads_the_token_from_memory(tmp_path: Path) -> None:
    (tmp_path / "hub-token").write_text("hf_secret\n")
    program = [sys.executable, "-c", PROGRAM]
    said = subprocess.run(program, env={"CREDENTIALS_DIRECTORY": str(tmp_path)}, capture_output=True, text=True, check=True).stdout
    assert said == "1 hf_secret 0\n"
