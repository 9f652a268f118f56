"""The machine that the tests run on, as a bed, which autopkgtest throws away afterwards. VLLM_SAFE_BED=here selects it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.beds.machine import ENVIRONMENT, Completed, Machine

WANTED = os.environ.get("VLLM_SAFE_BED") == "here"


class Here(Machine):
    """This machine. The package is already installed on it."""

    def stop(self) -> None:
        """Do nothing: the machine's creator takes it down."""

    def _execute(self, command: Sequence[str], stdin: str, timeout: float) -> Completed:
        return subprocess.run(
            command,
            check=False,
            input=stdin,
            timeout=timeout,
            capture_output=True,
            text=True,
            errors="replace",
            cwd="/root",
            env=ENVIRONMENT,
        )

    def put(self, source: Path, target: str) -> None:
        """Copy a file."""
        shutil.copyfile(source, target)
