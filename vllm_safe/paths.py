"""Where things are on the installed machine. Nothing else in the package spells these folders."""

from __future__ import annotations

from pathlib import Path

USER = "vllm"  # the system user that models run as, and its group
RECORDER = "vllm-record"  # the system user of the flight recorder

STATE = Path("/var/lib/vllm-safe")  # root:root
CACHE = Path("/var/cache/vllm-safe")  # vllm:vllm
HOME = STATE / "home"  # vllm:vllm 0700
ENGINES = STATE / "engine"  # vllm:vllm; venvs, and the symlinks `current` and `previous`
ENGINE = ENGINES / "current"
UNTRIED = STATE / "untried"  # the engines that were put in place while no card answered: see host/trial.py
MODELS = STATE / "models"  # vllm:vllm; ORG/NAME below it
RUNS = STATE / "runs"  # vllm-record:adm 2750; NAME/RUN below it: see record/store.py
EARLYOOM_ENV = STATE / "earlyoom.env"  # read by earlyoom.service.d/50-vllm-safe.conf

RUN = Path("/run/vllm-safe")  # root:root, made by tmpfiles.d, with all that is below
CREDENTIALS = RUN / "credentials"
STARTS = RUN / "starts"
TUNABLES = RUN / "tunables"  # what the kernel's tunables had before a model ran
SERVICE_RUN = Path("/run/vllm")  # NAME below it is the RuntimeDirectory of vllm@NAME.service


def credential_file(name: str) -> Path:
    """The copy of a model's API key that LoadCredential= of its unit reads: 0600 root."""
    return CREDENTIALS / f"{name}.api-key"


def starts_file(name: str) -> Path:
    """The log of a model's automatic restarts."""
    return STARTS / name
