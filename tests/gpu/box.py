"""The Debian that the scenarios run in: config.yaml, units, GPUs and requests, with the standard library only."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from tests.beds.tiny_model import SENTENCE

CONFIG = Path("/etc/vllm-safe/config.yaml")
STATES = Path("/run/vllm-safe/state")
CGROUPS = Path("/sys/fs/cgroup/vllm.slice")
ENGINE = "/var/lib/vllm-safe/engine/current"
MODELS = Path("/srv/models")
TINY, LARGE, SHORT, SHORT_GPTQ = (MODELS / name for name in ("tiny", "large", "short", "short-gptq"))
FIRST_PORT = 8100
MIB = 1 << 20
Figures = dict[str, object]  # the figures that a scenario measured, by name
FREE_AGAIN = 64 * MIB  # bytes on a GPU that a driver may keep for itself after a process has ended


class Wrong(Exception):
    """The result of a scenario is wrong."""


class Model(NamedTuple):
    """A model of the configuration."""

    name: str
    args: Mapping[str, Any] = {}
    env: Mapping[str, str] = {}
    path: Path = TINY
    gpus: tuple[int, ...] | None = None
    profile: str = "default"
    limits: Mapping[str, Any] = {}
    times: Mapping[str, Any] = {}  # and further settings of the model
    unit: str = ""  # lines of [Service] for a drop-in of the unit, to simulate a smaller machine


class Start(NamedTuple):
    """The course of a start. phases: the seconds in each phase, in order."""

    ok: bool
    seconds: float
    phases: dict[str, float]
    status: str


def run(command: Sequence[str] | str, *, check: bool = True, timeout: float = 600) -> str:
    """Run a program. Return its standard output."""
    done = subprocess.run(command, shell=isinstance(command, str), capture_output=True, text=True, check=False, timeout=timeout)
    if check and done.returncode:
        raise Wrong(f"{command}: exit status {done.returncode}: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout


def wait_for(what: str, is_so: Callable[[], bool], seconds: float) -> float:
    """Wait until a condition is true. Return the seconds that it took. Raises Wrong with `what` after `seconds`."""
    start = time.monotonic()
    while not is_so():
        if time.monotonic() > start + seconds:
            raise Wrong(f"not within {seconds:g} s: {what}")
        time.sleep(0.1)
    return time.monotonic() - start


class Box:
    """The models in the configuration, and the operations on them. `env`: variables that this machine needs, set for each model."""

    def __init__(self, models: Sequence[Model], env: Mapping[str, str], swap: Mapping[str, str]) -> None:
        self._models = {model.name: model for model in models}
        self._ports = {name: FIRST_PORT + number for number, name in enumerate(self._models)}
        self.env, self._swap = env, swap

    def configure(self) -> None:
        """Write config.yaml (as JSON, which is YAML). The previous file is kept beside it."""
        kept = CONFIG.with_suffix(".before-tests")
        if CONFIG.exists() and not kept.exists():
            shutil.copyfile(CONFIG, kept)
        CONFIG.write_text(
            json.dumps({"swap": self._swap, "models": {name: self._section(model) for name, model in self._models.items()}}, indent=1)
        )
        for model in self._models.values():
            if model.unit:
                folder = Path(f"/run/systemd/system/vllm@{model.name}.service.d")
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "smaller.conf").write_text(f"[Service]\n{model.unit}\n")
        run("systemctl daemon-reload")

    def change(self, name: str, args: Mapping[str, Any]) -> None:
        """Set options of `vllm serve` beside those of the scenario."""
        model = self._models[name]
        self._models[name] = model._replace(args={**model.args, **args})
        self.configure()

    def _section(self, model: Model) -> dict[str, Any]:
        section: dict[str, Any] = {
            "model": str(model.path),
            "port": self._ports[model.name],
            "profile": model.profile,
            "args": dict(model.args),
            "env": {**self.env, **model.env},
            **model.times,
        }
        if model.gpus is not None:
            section["gpus"] = list(model.gpus)
        if model.limits:
            section["limits"] = dict(model.limits)
        return section

    def start(self, name: str, timeout: float = 300) -> Start:
        """Start a model, and record its phases."""
        seen: list[tuple[str, float]] = []
        over = threading.Event()
        begun = time.time()

        def follow() -> None:
            while not over.wait(0.1):
                with suppress(OSError, ValueError, KeyError):
                    state = json.loads((STATES / f"{name}.json").read_text())
                    if state["started"] >= begun - 1 and (not seen or seen[-1][0] != state["phase"]):
                        seen.append((state["phase"], state["since"]))

        follower = threading.Thread(target=follow)
        follower.start()
        try:
            done = subprocess.run(["systemctl", "start", f"vllm@{name}"], capture_output=True, text=True, check=False, timeout=timeout)
        except subprocess.TimeoutExpired:
            raise Wrong(f"{name} is not ready after {timeout:g} s: {self.shown(name)['StatusText']}") from None
        finally:
            took = time.time() - begun
            over.set()
            follower.join()
        ends = [since for _, since in seen[1:]] + [time.time()]
        phases = {phase: round(end - since, 1) for (phase, since), end in zip(seen, ends, strict=True) if phase not in {"ready", "ended"}}
        return Start(done.returncode == 0, round(took, 1), phases, self.shown(name)["StatusText"])

    def must_start(self, name: str, timeout: float = 300) -> Start:
        """Start a model that must become ready and give the right answer. Raises Wrong."""
        start = self.start(name, timeout)
        if not start.ok:
            raise Wrong(f"{name} did not start: {start.status}")
        if self._models[name].path == TINY:
            self.must_answer(name)
        return start

    def must_answer(self, name: str) -> str:
        """Ask the tiny model for the sentence that it knows. Return the unit's status. Raises Wrong."""
        if (answer := self.ask(name, SENTENCE[:15], 20)) != SENTENCE[15:35]:
            raise Wrong(f"{name} answers {answer!r} and not {SENTENCE[15:35]!r}")
        return self.shown(name)["StatusText"]

    def must_fail(self, name: str, timeout: float = 300) -> dict[str, Any]:
        """Start a model that cannot become ready. Return the answer of `vllm-safe why --json`. Raises Wrong."""
        start = self.start(name, timeout)
        if start.ok:
            raise Wrong(f"{name} started")
        return self.why(name)

    def stop(self, name: str) -> float:
        """Stop a model. Return the seconds that it took."""
        start = time.monotonic()
        run(["systemctl", "stop", f"vllm@{name}"], timeout=120)
        if (CGROUPS / f"vllm@{name}.service").exists():
            raise Wrong(f"{name} was stopped, and its cgroup is there")
        return round(time.monotonic() - start, 1)

    def ask(self, name: str, prompt: str, tokens: int, timeout: float = 120, **more: object) -> str:
        """Return the model's continuation of a prompt."""
        body = {"model": name, "prompt": prompt, "max_tokens": tokens, "temperature": 0, **more}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._ports[name]}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=timeout) as answer:  # noqa: S310 - likewise
            text: str = json.load(answer)["choices"][0]["text"]
        return text

    def pace(self, name: str, tokens: int = 256, at_once: int = 1) -> float:
        """Return the tokens per second of one request, or of several at once."""
        start = time.monotonic()
        self.ask(name, "a", tokens, n=at_once, temperature=1, ignore_eos=True)  # at temperature 0 all would be the same, which vLLM refuses
        return round(at_once * tokens / (time.monotonic() - start), 1)

    def shown(self, name: str) -> dict[str, str]:
        """Return the properties of the unit."""
        fields = "ActiveState,SubState,StatusText,Result,ExecMainStatus,MainPID,NRestarts"
        lines = run(["systemctl", "show", f"vllm@{name}", f"--property={fields}"]).splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def why(self, name: str) -> dict[str, Any]:
        """Return the answer of `vllm-safe why`, once the recorder has recorded the end."""
        answer: dict[str, Any] = {}

        def is_recorded() -> bool:
            nonlocal answer
            with suppress(Wrong, ValueError):
                answer = json.loads(run(["vllm-safe", "why", name, "--json"]))
            return bool(answer) and answer["code"] != "running"

        wait_for(f"why {name} ended is known", is_recorded, 20)
        return answer

    def pids(self, name: str) -> dict[int, str]:
        """Return the processes of a model with their names, in the order of their PIDs."""
        found = {}
        with suppress(OSError):
            for pid in sorted(map(int, (CGROUPS / f"vllm@{name}.service/cgroup.procs").read_text().split())):
                with suppress(OSError):
                    found[pid] = Path(f"/proc/{pid}/comm").read_text().strip()
        return found

    def memory(self, name: str) -> dict[str, float]:
        """Return the RAM of a model in GiB: its own (private dirty pages), anonymous and shared memory, and the peak."""
        group = CGROUPS / f"vllm@{name}.service"
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        private = 0
        for pid in self.pids(name):
            with suppress(OSError):
                private += sum(
                    int(size)
                    for size in re.findall(r"^Private_Dirty:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
                )
        peak = int((group / "memory.peak").read_text()) if (group / "memory.peak").exists() else 0
        figures = {"private dirty": private * 1024, "anon": int(stat["anon"]), "shmem": int(stat["shmem"]), "peak": peak}
        return {key: round(value / (1 << 30), 2) for key, value in figures.items()}


def cards() -> list[int]:
    """Return the bytes in use on each GPU, from nvidia-smi."""
    return [int(line) * MIB for line in run("nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits").split()]


def cards_are_free(before: Sequence[int], seconds: float = 15) -> float:
    """Wait until no GPU has more memory in use than before. Return the seconds that it took."""
    return round(
        wait_for(
            "the cards' memory is free again",
            lambda: all(now <= then + FREE_AGAIN for now, then in zip(cards(), before, strict=True)),
            seconds,
        ),
        1,
    )


def make_models() -> None:
    """Make the models that do not exist yet."""
    here = Path(__file__).parents[2]
    for folder in (TINY, LARGE, SHORT, SHORT_GPTQ):
        if not (folder / "config.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            program = ["tests/beds/tiny_model.py"] if folder == TINY else ["tests/gpu/models.py", folder.name]
            run([f"{ENGINE}/bin/python", str(here / program[0]), str(folder), *program[1:]])
        for file in TINY.glob("*token*"):
            if folder != TINY:
                shutil.copyfile(file, folder / file.name)
    run(f"chmod -R a+rX {MODELS}")
