"""Several machines that serve models together: containers on one switch, each with the package, the real vLLM and one configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

from tests.beds import engine, quick_engine, tiny_model, trees
from tests.beds.machine import BedError
from tests.beds.nspawn import Bind, Nspawn
from tests.beds.switch import NETWORK, Switch

FIRST_PORT, FIRST_LINK = 8000, 29500
TUN = Path("/dev/net/tun")
TUNNEL = "10.99.0"  # the network in WireGuard
# Without torch.compile, which for several workers no option turns off and which wants a C++ compiler.
_ENV = '{VLLM_CPU_KVCACHE_SPACE: "1", VLLM_CPU_OMP_THREADS_BIND: nobind, TORCHDYNAMO_DISABLE: "1"}'
# The args of a model of which each of two machines has some of the layers, instead of a part of each.
# With enforce-eager, the CPU build of vLLM 0.32 allocates nothing for what the second stage receives: it does so only when it warms up
# (CPUModelRunner.warming_up_model). Without torch.compile it warms up in mode 1 alone.
TWO_STAGES = "{compilation-config: {mode: 1, cudagraph_mode: NONE}, pipeline-parallel-size: 2}"
_NONE: Mapping[str, Mapping[str, str]] = MappingProxyType({})
_GONE = "pgrep --list-full --uid vllm; ls -d /sys/fs/cgroup/vllm.slice/vllm@* 2>/dev/null; ss -ltnpH | grep -i vllm; true"


class Lan:
    """The machines gpu1, gpu2 and so on, and the switch between them. As a context manager, all are taken down at the end.

    models: the machines that serve each. wait: RestartSec= of all, as systemd writes it.
    own: settings of some models that replace those of all, by name, as YAML.
    tunnel: the host names are those of addresses in WireGuard.
    """

    def __init__(
        self,
        deb: Path,
        models: Mapping[str, Sequence[str]],
        *,
        wait: str,
        tunnel: bool = False,
        own: Mapping[str, Mapping[str, str]] = _NONE,
    ) -> None:
        self.names = sorted({name for names in models.values() for name in names})
        self.beds: list[Nspawn] = []
        self._deb, self._wait, self._tunnel = deb, wait, tunnel
        self._models = {name: (FIRST_PORT + place, FIRST_LINK + 2 * place) for place, name in enumerate(models)}
        parts = (_describe(name, models[name], *ports, own.get(name, {})) for name, ports in self._models.items())
        self._members = {name: [self.names.index(one) for one in models[name]] for name in models}
        self.config = "swap: {size: none}\nengine: {package: vllm-cpu}\nmodels:\n" + "".join(parts)
        self.switch = Switch()
        try:
            for place in range(len(self.names)):
                self.beds.append(self._boot(place))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        """Return the running machines."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Take everything down."""
        self.close()

    def close(self) -> None:
        """Take everything down. Can be called twice."""
        for bed in self.beds:
            bed.stop()
        self.switch.stop()

    def _boot(self, place: int) -> Nspawn:
        recipe, binds = (trees.WITH_WIREGUARD, [Bind(TUN, str(TUN), writable=True)]) if self._tunnel else (trees.CONTAINER, [])
        bed = Nspawn(recipe, network=False, layers=quick_engine.layers(self._deb), binds=binds)
        try:
            self._set_up(bed, place)
        except BaseException:
            bed.stop()
            raise
        return bed

    def _set_up(self, bed: Nspawn, place: int) -> None:
        name = self.names[place]
        network = TUNNEL if self._tunnel else NETWORK
        hosts = "".join(f"{network}.{number} {other}\n" for number, other in enumerate(self.names, 1))
        bed.run(["hostname", name])
        bed.write("/etc/hosts", f"127.0.0.1 localhost\n127.0.1.1 {name}\n{hosts}")  # as Debian's installer writes it
        self.switch.plug_in(bed, place + 1)
        bed.install(self._deb)
        bed.write("/etc/vllm-safe/config.yaml", self.config)
        bed.write("/run/systemd/system/vllm@.service.d/wait.conf", f"[Service]\nRestartSec={self._wait}\n")
        bed.run("systemctl daemon-reload")

    def cut_power(self, place: int) -> None:
        """Take a machine down at once, without a word to the others: the kernel would close the connections of a container."""
        self.switch.cut(place + 1)
        self.beds[place].stop()

    def boot_again(self, place: int) -> None:
        """Boot a machine again that is down, with the disk contents of the beginning."""
        self.beds[place].stop()
        self.beds[place] = self._boot(place)

    def start(self, model: str, *places: int) -> None:
        """Start a model on all machines, or on some, without waiting for it."""
        for place in places or self._members[model]:
            self.beds[place].run(["systemctl", "start", "--no-block", f"vllm@{model}"])

    def shown(self, model: str) -> list[dict[str, str]]:
        """Return the properties of the model's unit on each of its machines."""
        wanted = ("SubState", "StatusText", "ExecMainStatus")
        return [self.beds[place].properties(f"vllm@{model}.service", *wanted) for place in self._members[model]]

    def told(self, model: str) -> list[str]:
        """Return the status of the model's unit on each of its machines."""
        return [shown["StatusText"] for shown in self.shown(model)]

    def told_by(self, model: str, place: int) -> str:
        """Return the status of the model's unit on one machine."""
        return self.beds[place].properties(f"vllm@{model}.service", "StatusText")["StatusText"]

    def wait_for_all(self, model: str, state: str, timeout: float) -> None:
        """Wait until the model's unit has this SubState= on all of its machines. Raises BedError."""

        def are_so() -> bool:
            shown = self.shown(model)
            if any(one["SubState"] != state for one in shown):
                raise BedError(str(shown))
            return True

        self.beds[0].wait_for(f"{model} is {state} on all machines", are_so, timeout=timeout)

    def state(self, model: str, place: int) -> dict[str, Any]:
        """Return the content of the model's state file on one machine."""
        state: dict[str, Any] = json.loads(self.beds[place].read(f"/run/vllm-safe/state/{model}.json"))
        return state

    def must_answer(self, model: str, timeout: float = 120) -> None:
        """Ask the first machine for the sentence that the tiny model knows. Raises BedError if the answer is wrong."""
        port = self._models[model][0]
        question = {"model": model, "prompt": tiny_model.SENTENCE[:15], "max_tokens": 20, "temperature": 0}
        ask = (
            f"curl --fail --silent --show-error http://127.0.0.1:{port}/v1/completions --header 'Content-Type: application/json' --data @-"
        )
        answer = json.loads(self.beds[0].run(ask, stdin=json.dumps(question), timeout=timeout).stdout)["choices"][0]["text"]
        if answer != tiny_model.SENTENCE[15:35]:
            raise BedError(f"{model} answers {answer!r}")

    def ask_for_long(self, model: str) -> None:
        """Have a request run that takes longer than anything that is done to the model meanwhile."""
        url, bed = f"http://127.0.0.1:{self._models[model][0]}", self.beds[0]
        bed.write("/root/long.json", json.dumps({"model": model, "prompt": "a", "max_tokens": 1900, "ignore_eos": True}))
        ask = f"curl --silent {url}/v1/completions --header 'Content-Type: application/json' --data @/root/long.json"
        bed.run(f"nohup {ask} > /dev/null 2>&1 &")
        running = f"curl --silent {url}/metrics | grep -q '^vllm:num_requests_running.* 1.0$'"
        bed.wait_for("the request runs", lambda: bed.run(running, check=False).returncode == 0, timeout=20)

    def stop(self) -> None:
        """Stop all models everywhere. Raises BedError if anything is left of them."""
        for bed in self.beds:
            bed.run("systemctl stop 'vllm@*'; systemctl reset-failed 'vllm@*'", check=False)
        for bed in self.beds:
            bed.wait_for("nothing is left", lambda bed=bed: bed.out(_GONE) == "", timeout=10)  # type: ignore[misc] # mypy 2608


def _describe(name: str, nodes: Sequence[str], port: int, link: int, own: Mapping[str, str]) -> str:
    """Return the part of the configuration for one model."""
    settings = {
        "model": engine.MODEL,
        "port": str(port),
        "nodes": f"[{', '.join(nodes)}]",
        "nodes_port": str(link),
        "args": f"{{enforce-eager: true, tensor-parallel-size: {len(nodes)}}}",
        "env": _ENV,
        "stop_grace": "5s",
        **own,
    }
    return f"  {name}:\n" + "".join(f"    {key}: {value}\n" for key, value in settings.items())
