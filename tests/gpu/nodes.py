"""The scenario of one model on two machines: two network namespaces of this one, with a cable between them, and NCCL over its sockets.

The first machine is vllm@spread.service as it is installed. The second is a copy of that unit with folders of its own, whose launch file
the package writes under another host name. A GPU each where there are two, else both use the same one.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tests.beds.tiny_model import SENTENCE
from tests.gpu.box import CONFIG, STATES, TINY, Box, Figures, Wrong, cards, cards_are_free, run, wait_for

MODEL = "spread"
PORT = 8098
NAMES = ("gpu-first", "gpu-second")
ADDRESSES = ("10.78.0.1", "10.78.0.2")
UNITS = (f"vllm@{MODEL}.service", f"vllm-second@{MODEL}.service")
READY, BOUND = 110.0, 40.0  # seconds: of a start, and of the end of all after that of one

_UNIT_FILE = Path("/run/systemd/system/vllm-second@.service")
_DROPIN = Path(f"/run/systemd/system/vllm@{MODEL}.service.d/nodes.conf")
_RUN, _SECOND_RUN = Path("/run/vllm-safe"), Path("/run/vllm-safe-second")
_SECOND_CONFIG = CONFIG.with_name("config-second.yaml")
_HOSTS = Path("/etc/hosts")
_VARIABLES = {"NCCL_DEBUG": "INFO", "NCCL_DEBUG_FILE": "/dev/stderr", "NCCL_IB_DISABLE": "1"}  # on stdout, its lines come at the end
_ARGS = {"tensor-parallel-size": 2, "enforce-eager": True, "gpu-memory-utilization": 0.3, "max-model-len": 2048}
_SERVICE = "[Service]\nNetworkNamespacePath=/run/netns/{name}\nRestartSec=5\n"
# Its processes see folders of their own at the places of the first machine's. A mount on a folder that the first unit removes would go.
_OF_SECOND = (
    f"RuntimeDirectory=\nRuntimeDirectory=vllm-second\nWorkingDirectory=/run/vllm-second\nTemporaryFileSystem=/run/vllm\n"
    f"BindPaths={_SECOND_RUN}:{_RUN} /run/vllm-second:/run/vllm/{MODEL}\n"
)
_ORDER = re.compile(r"^(?:Requires|Wants|After|PartOf|WantedBy)=.*\n", re.MULTILINE)


class _Machine(NamedTuple):
    """One of the two machines."""

    name: str
    unit: str
    states: Path

    def shown(self) -> dict[str, str]:
        lines = run(["systemctl", "show", self.unit, "--property=ActiveState,SubState,StatusText,MainPID"]).splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def reason(self) -> str:
        """Return the reason that its main process gives for its end, which is about to be written or has just been."""
        found: dict[str, Any] = {}

        def is_written() -> bool:
            with suppress(OSError, ValueError):
                found.update(json.loads((self.states / f"{MODEL}.json").read_text(encoding="utf-8")))
            return bool(found.get("cause"))

        wait_for(f"{self.name} says why it ended", is_written, 3)
        return f"{found['cause']}: {found['reason']}"

    def log(self, since: float) -> str:
        return run(["journalctl", "--no-pager", "--output=cat", "--unit", self.unit, f"--since=@{since:.0f}"])

    def worker(self) -> int:
        """Return the PID of its worker."""
        pids = Path(f"/sys/fs/cgroup/vllm.slice/{self.unit}/cgroup.procs").read_text(encoding="ascii").split()
        for pid in pids:
            with suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").startswith("VLLM::Worker"):
                    return int(pid)
        raise Wrong(f"{self.unit} has no worker among its {len(pids)} processes")


FIRST = _Machine(NAMES[0], UNITS[0], STATES)
SECOND = _Machine(NAMES[1], UNITS[1], _SECOND_RUN / STATES.relative_to(_RUN))


def two_machines(box: Box) -> Figures:
    """Serve, kill the worker of one machine and then of the other: both end each time, and serve again by themselves."""
    begun = time.time()
    with _machines(box):
        before = cards()
        try:
            return _shown(begun) | _free_again(before)
        except Exception as error:
            said = " | ".join(f"{machine.name}: {_end_of(machine.log(begun))}" for machine in (FIRST, SECOND))
            raise Wrong(f"{error}; {said}") from error
        finally:
            run(["systemctl", "stop", *UNITS], check=False)


def _shown(begun: float) -> Figures:
    run(["systemctl", "start", "--no-block", *UNITS])
    figures: Figures = {"ready": _wait_until_both_serve()}
    _must_answer()
    figures["NCCL"] = [_network(machine, begun) for machine in (FIRST, SECOND)]
    for killed, other in ((SECOND, FIRST), (FIRST, SECOND)):
        run(["kill", "-KILL", str(killed.worker())])
        ended = wait_for(f"{other.name} ends with {killed.name}", partial(_has_ended, other), BOUND)
        reason = other.reason()
        if killed.name not in reason:
            raise Wrong(f"{other.name} says {reason!r}, and the worker of {killed.name} was killed")
        wait_for(f"{killed.name} ends", partial(_has_ended, killed), BOUND)
        figures[f"worker of {killed.name} killed"] = {
            f"{other.name} ended after": round(ended, 1),
            "said": reason,
            "both serve again after": _wait_until_both_serve(),
        }
        _must_answer()
    return figures


def _free_again(before: list[int]) -> Figures:
    start = time.monotonic()
    run(["systemctl", "stop", *UNITS])
    figures: Figures = {"stop": round(time.monotonic() - start, 1), "cards free after": cards_are_free(before)}
    if left := run("pgrep --list-full --uid vllm", check=False).strip():
        raise Wrong(f"processes are left: {left}")
    return figures


def _has_ended(machine: _Machine) -> bool:
    return not _serves(machine)


def _serves(machine: _Machine) -> bool:
    return machine.shown()["ActiveState"] == "active"


def _wait_until_both_serve() -> float:
    def is_so() -> bool:
        for machine in (FIRST, SECOND):
            if (shown := machine.shown())["ActiveState"] == "failed":
                raise Wrong(f"{machine.name} failed: {shown['StatusText']}")
        return _serves(FIRST) and _serves(SECOND)

    try:
        return round(wait_for("both serve", is_so, READY), 1)
    except Wrong as wrong:
        said = ", ".join(f"{machine.name}: {machine.shown()['StatusText']}" for machine in (FIRST, SECOND))
        raise Wrong(f"{wrong}; {said}") from None


def _must_answer() -> None:
    question = json.dumps({"model": MODEL, "prompt": SENTENCE[:15], "max_tokens": 20, "temperature": 0})
    ask = ["curl", "--fail", "--silent", "--show-error", "--max-time", "60", "--header", "Content-Type: application/json"]
    answer = run(["ip", "netns", "exec", NAMES[0], *ask, "--data", question, f"http://127.0.0.1:{PORT}/v1/completions"])
    if (text := json.loads(answer)["choices"][0]["text"]) != SENTENCE[15:35]:
        raise Wrong(f"it answers {text!r} and not {SENTENCE[15:35]!r}")


def _network(machine: _Machine, begun: float) -> str:
    """Return how NCCL on a machine reaches the other one, in its own words. Raises Wrong where that is not over sockets."""
    ways = re.findall(r"Channel \S+ : .* via (\S+)", machine.log(begun))
    if not ways or any(not way.startswith("NET/Socket") for way in ways):
        raise Wrong(f"NCCL on {machine.name} does not use sockets: {sorted(set(ways)) or 'it names no way'}")
    return f"{len(ways)} ways via {', '.join(sorted(set(ways)))}"


def _end_of(log: str) -> str:
    lines = [line for line in log.splitlines() if re.search(r"vllm-safe:|Error|ERROR|WARN", line)]
    return " / ".join(line[-200:] for line in lines[-12:])


@contextmanager
def _machines(box: Box) -> Iterator[None]:
    """Make both machines, and take them away again."""
    hosts, host_name = _HOSTS.read_text(encoding="utf-8"), run(["hostname"]).strip()
    try:
        _lay_cable()
        _HOSTS.write_text(hosts + "".join(f"{address} {name}\n" for address, name in zip(ADDRESSES, NAMES, strict=True)), encoding="utf-8")
        run(["hostname", NAMES[0]])
        there = len(cards())
        for rank, config in enumerate((CONFIG, _SECOND_CONFIG)):
            config.write_text(json.dumps(_configuration(box, rank, there)), encoding="utf-8")
        _make_second()
        _DROPIN.parent.mkdir(parents=True, exist_ok=True)
        _DROPIN.write_text(_SERVICE.format(name=NAMES[0]), encoding="utf-8")
        run(["systemctl", "daemon-reload"])
        yield
    finally:
        run(["systemctl", "stop", *UNITS], check=False)
        for file in (_UNIT_FILE, _DROPIN, _SECOND_CONFIG):
            file.unlink(missing_ok=True)
        run(["rm", "-rf", str(_SECOND_RUN)])
        run(["hostname", host_name])
        _HOSTS.write_text(hosts, encoding="utf-8")
        for name in NAMES:
            run(["ip", "netns", "delete", name], check=False)
        box.configure()


def _lay_cable() -> None:
    for name in NAMES:
        run(["ip", "netns", "add", name])
        run(["ip", "-n", name, "link", "set", "lo", "up"])
    run(["ip", "link", "add", "lan0", "netns", NAMES[0], "type", "veth", "peer", "name", "lan0", "netns", NAMES[1]])
    for name, address in zip(NAMES, ADDRESSES, strict=True):
        run(["ip", "-n", name, "address", "add", f"{address}/24", "dev", "lan0"])
        run(["ip", "-n", name, "link", "set", "lan0", "up"])


def _configuration(box: Box, rank: int, there: int) -> dict[str, Any]:
    """Return the configuration of one machine. NCCL takes two ranks for those of one machine unless its host id differs."""
    model: dict[str, Any] = {
        "model": str(TINY),
        "port": PORT,
        "nodes": list(NAMES),
        "args": _ARGS,
        "env": {**_VARIABLES, **box.env, "NCCL_HOSTID": NAMES[rank]},
        "stop_grace": "5s",
    }
    if there:
        model["gpus"] = [rank % there]
    return {"swap": {"size": "none"}, "models": {MODEL: model}}


def _make_second() -> None:
    """Write the unit of the second machine, its folders, and its launch file."""
    text = _ORDER.sub("", run(["systemctl", "cat", UNITS[0]]))
    _UNIT_FILE.write_text(f"{text}\n{_SERVICE.format(name=NAMES[1])}{_OF_SECOND}", encoding="utf-8")
    run(["rm", "-rf", str(_SECOND_RUN)])
    run(["cp", "--archive", str(_RUN), str(_SECOND_RUN)])
    steps = (
        f"hostname {NAMES[1]}",
        f"mount --bind {_SECOND_RUN} {_RUN}",
        f"mount --bind {_SECOND_CONFIG} {CONFIG}",
        f"exec vllm-safe apply -- {MODEL}",
    )
    run(["unshare", "--uts", "--mount", "sh", "-ec", "\n".join(steps)])
    launch = json.loads((_SECOND_RUN / f"launch/{MODEL}.json").read_text(encoding="utf-8"))
    if launch["refusal"] or launch["rank"] != 1:
        raise Wrong(f"the start on {NAMES[1]} is refused: {launch['refusal']} {launch['hint']}")
