"""A machine whose models run, as files and programs in a folder: for commands that look at what runs, where there is no systemd."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.builders.fake_nvml import build_fake_nvml
from vllm_safe.contract.state_file import LoadProgress, State, to_json

GIB = 1 << 30
ROOT = Path(__file__).parents[2]
CONFIG = """\
swap: {size: none}
models:
  qwen72b: {command: [/bin/sh], port: 8000}
  small: {command: [/bin/sh], port: 8001}
  night: {command: [/bin/sh], port: 8002}
"""
LIMITS = {"qwen72b": (12 * GIB, 115 * GIB), "small": (3 * GIB, 20 * GIB)}
# vllm-safe with the folder's files instead of those of the machine.
_PROGRAM = """\
#!{python}
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
folder = Path({folder!r})
from vllm_safe.common import paths
from vllm_safe.config import reader
paths.RUNS, reader.DEFAULT_PATH = folder / "runs", folder / "config.yaml"
from vllm_safe.driver.card_readings import CardFeed
from vllm_safe.status import status_facts
CardFeed.__init__.__defaults__ = (CardFeed.__init__.__defaults__[0], folder / "root")
status_facts.read_model_status.__kwdefaults__ = {{"root": folder}} | {{name: folder / name for name in ("states", "guard", "cards")}}
status_facts.running_models.__defaults__ = (folder,)
status_facts.read_machine_memory.__defaults__ = (str(folder / "meminfo"),)
from vllm_safe.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def make_busy_machine(folder: Path, *, cards: int = 8) -> Path:
    """Make a machine that loads one model on all of its GPUs, serves another on the first, and has a third that never ran.

    Return the program that is vllm-safe there; it needs the folder bin of `folder` first in PATH (see `environment_of_machine`).
    """
    now = time.time()
    (folder / "bin").mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "meminfo").write_text("MemTotal: 16326000 kB\nMemAvailable: 1204000 kB\nSwapTotal: 134217728 kB\nSwapFree: 94371840 kB\n")
    _slices(folder)
    _model(folder, "qwen72b", 4711, now, phase="loading", progress=LoadProgress(31 * GIB, 76 * GIB, 118.0 * (1 << 20), 390.0))
    _model(folder, "small", 4712, now, phase="ready", running=2, waiting=1, tokens=8123)
    acts = [{"time": now - 300, "act": "squeeze", "text": "reclaimed 1 GiB of qwen72b: system.slice waits for memory (23 %)"}]
    acts.append({"time": now - 125, "act": "freeze", "text": "froze qwen72b for 3 s: system.slice waits for memory (51 %)"})
    (folder / "guard").mkdir()
    (folder / "guard/qwen72b.jsonl").write_text("".join(json.dumps(act) + "\n" for act in acts))
    units = {"qwen72b": ("activating", "start", 4711), "small": ("active", "running", 4712), "night": ("inactive", "dead", 0)}
    (folder / "units").mkdir()
    for name, unit in units.items():
        (folder / f"units/vllm@{name}.service").write_text("\n".join(_unit(name, *unit)) + "\n\n")
    show = 'for unit; do cat "$unit" 2>/dev/null || printf "Id=%s\\nActiveState=inactive\\n\\n" "$unit"; done'
    _program(folder / "bin/systemctl", f'#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done; shift\ncd {folder}/units\n{show}\n')
    build_fake_nvml(folder / "lib")
    _cards(folder, cards)
    _program(folder / "vllm-safe", _PROGRAM.format(python=sys.executable, root=str(ROOT), folder=str(folder)))
    return folder / "vllm-safe"


def environment_of_machine(folder: Path) -> dict[str, str]:
    """Return the environment in which the programs of the folder are found first, and its NVML."""
    ours = {"PATH": f"{folder}/bin:{os.environ['PATH']}", "LD_LIBRARY_PATH": f"{folder}/lib", "FAKE_NVML": f"{folder}/nvml.txt"}
    return os.environ | ours | {"TERM": "xterm", "PYTHONDONTWRITEBYTECODE": "1"}


def run_on_machine(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run vllm-safe there, its output on a pipe."""
    command = [folder / "vllm-safe", *arguments]
    return subprocess.run(command, env=environment_of_machine(folder) | variables, capture_output=True, text=True, check=False, timeout=60)


def _slices(folder: Path) -> None:
    for part in ("system.slice", "user.slice", "init.scope"):
        (folder / part).mkdir()
        for kind in ("memory", "io"):
            (folder / part / f"{kind}.pressure").write_text("full avg10=2.00 avg60=0.00 avg300=0.00 total=5\n")


def _model(folder: Path, name: str, pid: int, now: float, **state: Any) -> None:  # noqa: ANN401 - fields of State
    group = folder / f"vllm.slice/vllm@{name}.service"
    group.mkdir(parents=True)
    memory, swap = LIMITS[name]
    files = {
        "memory.stat": f"anon {memory * 9 // 10}\nshmem 0\nfile 0\n",
        "memory.max": f"{memory}\n",
        "memory.swap.current": f"{swap // 3}\n",
        "memory.swap.max": f"{swap}\n",
        "memory.pressure": "full avg10=43.00 avg60=0.00 avg300=0.00 total=5\n",
        "io.pressure": "full avg10=12.00 avg60=0.00 avg300=0.00 total=5\n",
    }
    for file, content in files.items():
        (group / file).write_text(content)
    (folder / "states").mkdir(exist_ok=True)
    told = State(name=name, run="0" * 32, pid=pid, time=now, started=now - 800, since=now - 700, **state)
    (folder / f"states/{name}.json").write_text(to_json(told))


def _unit(name: str, active: str, sub: str, pid: int) -> list[str]:
    group = f"/vllm.slice/vllm@{name}.service" if pid else ""
    shown = {"Id": f"vllm@{name}.service", "ActiveState": active, "SubState": sub, "MainPID": pid, "ControlGroup": group}
    return [f"{key}={value}" for key, value in shown.items()]


def _cards(folder: Path, number: int) -> None:
    """Have NVML report cards on risers, of which the seventh is too hot, and the processes that use them."""
    said = ["error 0", "driver 580.159.04", "cuda 13000"]
    for index in range(number):
        address = f"0000:{index + 1:02x}:00.0"
        said += [f"card {address} NVIDIA GeForce RTX 3060", "capability 8.6", f"memory 12288 {10300 + 1600 * (index == 0)}"]
        said += ["process 5711 10140", *(["process 5712 1434", "process 99 200"] if index == 0 else [])]
        said += ["power 170 170 100 190", "draw 138", f"temperature {71 + index} 93", "busy 97", f"slowed {0x20 if index == 6 else 0x4:#x}"]
        device = folder / f"root/sys/bus/pci/devices/{address}"
        device.mkdir(parents=True)
        (device / "current_link_width").write_text("1\n")
        (device / "max_link_width").write_text("16\n")
    (folder / "nvml.txt").write_text("\n".join(said) + "\n")
    users = {
        5711: ("VLLM::Worker", "vllm.slice/vllm@qwen72b.service"),
        5712: ("vllm", "vllm.slice/vllm@small.service"),
        99: ("Xorg", "x.scope"),
    }
    for pid, (program, group) in users.items():
        (folder / f"root/proc/{pid}").mkdir(parents=True)
        (folder / f"root/proc/{pid}/comm").write_text(f"{program}\n")
        (folder / f"root/proc/{pid}/cgroup").write_text(f"0::/{group}\n")


def _program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)
