"""Runs of the program that talks to a hub, with the real huggingface_hub, but without systemd and user vllm."""

from __future__ import annotations

import io
import logging
import os
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from vllm_safe.models import as_engine
from vllm_safe.models.as_engine.hub_download.download_command import main as download
from vllm_safe.sandbox.run_as_vllm import AsVllm, Outcome


def run_here(task: AsVllm, *, quiet: bool = False) -> Outcome:
    """Run a task as the present user and in this process, with the environment and credentials of its service."""
    assert not quiet
    assert "secret" not in str((task.env, task.argv))
    stdout, stderr, before = io.StringIO(), io.StringIO(), os.umask(0o022)
    try:
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(stdout), redirect_stderr(stderr):
            for name, value in task.env.items():
                patch.setenv(name, value)
            if task.credentials:
                patch.setenv("CREDENTIALS_DIRECTORY", str(task.credentials["hub-token"].parent))
            program = task.argv.index(str(Path(as_engine.__file__).parent))
            status = download(list(task.argv[program + 1 :]))
    finally:
        os.umask(before)
        logging.disable(logging.NOTSET)
    return Outcome("exit-code" if status else "success", status, stdout.getvalue(), stderr.getvalue())
