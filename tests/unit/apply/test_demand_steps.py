"""The sockets of models on demand: only what differs is touched, and everything can be taken back without a configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_safe.apply.demand_steps import DemandPlaces, demand_steps, undo_demand_steps
from vllm_safe.apply.unit_steps import StopUnits, WriteDropin
from vllm_safe.common.steps import Step
from vllm_safe.config.settings import Config, Model
from vllm_safe.contract.gateway_file import GatewayFile
from vllm_safe.decide.demand_units import DROPIN, decide_demand_units

GATEWAY = GatewayFile(port=8081)


class Bench:
    """A folder of units, and the file of the gateway."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder / "system", folder / "gateway.json"
        self.at = DemandPlaces(self.folder, self.file, folder / "key")
        self.folder.mkdir()
        self.active: dict[str, bool] = {}

    def steps(self, key: str | None = None, **ports: int) -> tuple[Step, ...]:
        models = {name: Model(model="a/b", port=port, on_demand=True) for name, port in ports.items()}
        return demand_steps(decide_demand_units(Config(models=models)), GATEWAY, self.active, key, self.at)

    def apply(self, **ports: int) -> None:
        """Bring them about, as far as that needs no systemd."""
        for step in self.steps(**ports):
            if isinstance(step, WriteDropin):
                step.path.parent.mkdir(exist_ok=True)
                step.path.write_text(step.content)
        self.file.write_text(GATEWAY.to_json())
        self.active = {f"vllm-on-demand@{name}.socket": True for name in ports}

    def words(self, steps: tuple[Step, ...]) -> list[str]:
        return [step.describe().replace(f"{self.folder}/", "").replace(f"{self.file}", "FILE") for step in steps]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


OPENS = "start vllm-on-demand@{0}.socket, which listens on 127.0.0.1:{1} and /run/vllm-safe/on-demand/{0}.sock"
WRITES = ["write vllm-on-demand@{0}.socket.d/" + DROPIN, "write vllm-on-demand@{0}.service.d/" + DROPIN]
RELOADS = "reload systemd's unit files (daemon-reload)"
TELLS = "write FILE (root:vllm-gateway 0640)"


def test_at_first_everything_is_written_and_opened(bench: Bench) -> None:
    assert bench.words(bench.steps(x=8000)) == [*(line.format("x") for line in WRITES), RELOADS, TELLS, OPENS.format("x", 8000)]


def test_what_is_as_it_should_be_is_left_alone(bench: Bench) -> None:
    bench.apply(x=8000)
    assert bench.steps(x=8000) == ()


def test_a_socket_that_was_closed_is_opened(bench: Bench) -> None:
    bench.apply(x=8000)
    bench.active = {}
    assert bench.words(bench.steps(x=8000)) == [OPENS.format("x", 8000)]


def test_another_port_closes_that_socket_alone(bench: Bench) -> None:
    bench.apply(x=8000, y=8001)
    assert bench.words(bench.steps(x=8000, y=8002)) == [
        "stop vllm-on-demand@y.socket, vllm-on-demand@y.service",
        *(line.format("y") for line in WRITES),
        RELOADS,
        OPENS.format("y", 8002),
    ]


def test_a_model_that_is_no_longer_on_demand_has_no_socket(bench: Bench) -> None:
    bench.apply(x=8000, y=8001)
    assert bench.words(bench.steps(x=8000)) == [
        "stop vllm-on-demand@y.socket, vllm-on-demand@y.service",
        f"remove {bench.folder}/vllm-on-demand@y.socket.d/{DROPIN}".replace(f"{bench.folder}/", ""),
        f"remove vllm-on-demand@y.service.d/{DROPIN}",
        RELOADS,
    ]


def test_the_key_of_the_gateway_is_copied_for_it_and_never_shown(bench: Bench) -> None:
    bench.apply(x=8000)
    (copy,) = bench.steps("secret", x=8000)
    assert (copy.describe(), "secret" in repr(copy)) == (f"write {bench.at.key} (root:root 0600)", False)
    bench.at.key.write_text("secret")
    assert bench.steps("secret", x=8000) == ()
    (emptied,) = bench.steps(x=8000)
    emptied.run()
    assert bench.at.key.read_text() == "\n"  # without the file, systemd would keep the key that it has
    assert bench.steps(x=8000) == ()
    assert bench.words(undo_demand_steps(bench.at))[-1] == f"remove {bench.at.key}"


def test_everything_is_taken_back_without_a_configuration(bench: Bench) -> None:
    assert undo_demand_steps(bench.at) == ()
    bench.apply(x=8000, y=8001)
    steps = undo_demand_steps(bench.at)
    assert steps[0] == StopUnits(
        (
            *("vllm-on-demand@x.socket", "vllm-on-demand@x.service"),
            *("vllm-on-demand@y.socket", "vllm-on-demand@y.service"),
        )
    )
    assert bench.words(steps)[-2:] == [RELOADS, "remove FILE"]
