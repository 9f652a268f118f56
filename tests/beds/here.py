"""The machine that the tests run on, as a bed: what autopkgtest throws away afterwards. VLLM_SAFE_BED=here asks for it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.beds.machine import ENVIRONMENT, Completed, Machine

WANTED = os.environ.get("VLLM_SAFE_BED") == "here"


class Here(Machine):
    """This machine. Our package is on it already."""

    def stop(self) -> None:
        """Nothing to take down: whoever made the machine does that."""

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
