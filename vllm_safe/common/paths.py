"""Paths on the installed machine. No other module of the package spells out these folders."""

from __future__ import annotations

from pathlib import Path

USER = "vllm"  # the system user that models run as, and its group
RECORDER = "vllm-record"  # the system user of the flight recorder
GATEWAY = "vllm-gateway"  # the system user of the gateway, and its group

STATE = Path("/var/lib/vllm-safe")  # root:root
CACHE = Path("/var/cache/vllm-safe")  # vllm:vllm
HOME = STATE / "home"  # vllm:vllm 0700
ENGINES = STATE / "engine"  # vllm:vllm; venvs, and the symlinks `current` and `previous`
ENGINE = ENGINES / "current"
ENGINE_PLUGINS = Path("/usr/lib/vllm-safe/engine-plugins")  # a link to vllm_safe/engine/as_engine: engines of any age have it
UNTRIED = STATE / "untried"  # the engines that were installed while no GPU answered: see engine/trial_facts.py
DISK_PACES = STATE / "disk-paces.json"  # root:root; bytes/s by model, as `check --disk` measured them
MODELS = STATE / "models"  # vllm:vllm; ORG/NAME below it
RUNS = STATE / "runs"  # vllm-record:adm 2750; NAME/RUN below it: see record/run_store.py
EARLYOOM_ENV = STATE / "earlyoom.env"  # read by EARLYOOM_DROPIN
EARLYOOM_DROPIN = Path("/run/systemd/system/earlyoom.service.d/50-vllm-safe.conf")  # its folder is made by tmpfiles.d

RUN = Path("/run/vllm-safe")  # root:root; created by tmpfiles.d, with all folders below it
CREDENTIALS = RUN / "credentials"
STARTS = RUN / "starts"
TUNABLES = RUN / "tunables"  # the values of the kernel tunables from before a model ran
POWER = RUN / "power"  # the power limits of the GPUs from before a model ran
UNITS = Path("/run/systemd/system")  # units and drop-ins that last until the next boot
SERVICE_RUN = Path("/run/vllm")  # NAME below it is the RuntimeDirectory= of vllm@NAME.service


def credential_file(name: str) -> Path:
    """Return the path of the copy of a model's API key that LoadCredential= of its unit reads (root, 0600)."""
    return CREDENTIALS / f"{name}.api-key"


# The copy of the key that clients of the gateway must send (root, 0600). No model has such a name.
GATEWAY_CREDENTIAL = credential_file(":gateway")


def starts_file(name: str) -> Path:
    """Return the path of the log of a model's automatic restarts."""
    return STARTS / name
