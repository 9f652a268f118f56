"""The launch of one server."""

from __future__ import annotations

import json
from types import MappingProxyType

import pytest

from tests.builders.launches import HOST, config_of, launch_of, launch_on
from vllm_safe.common.sizes import GIB
from vllm_safe.config.profiles import PROFILES
from vllm_safe.config.settings import Config, Model, Position, settings_of
from vllm_safe.contract.default_times import DEFAULT_TIMES
from vllm_safe.contract.launch_file import Launch
from vllm_safe.decide.serve_command import decide_server
from vllm_safe.host.host_facts import Host


@pytest.mark.parametrize("name", DEFAULT_TIMES)
def test_what_the_file_says_of_a_time_is_what_holds(name: str) -> None:
    row = next(row for row in settings_of(Model) if row.name == name)
    assert row.doc.endswith(f"Unset: the profile's, else {row.kind.write(DEFAULT_TIMES[name])}.")
    assert row.example == row.kind.write(DEFAULT_TIMES[name])


def test_vllm_gets_its_options_from_a_file_named_after_a_space() -> None:
    launch = launch_of()
    assert launch.argv == ("/var/lib/vllm-safe/engine/current/bin/vllm", "serve", "--config", "/run/vllm/x/serve.yaml")
    assert launch.serve_file == launch.argv[-1]
    assert launch.serve_args is not None
    assert launch.serve_args["model"] == "/var/lib/vllm-safe/models/Qwen/Qwen2.5-72B"
    assert launch.serve_args["served-model-name"] == ["x"]
    assert (launch.serve_args["host"], launch.serve_args["port"]) == ("127.0.0.1", 8000)
    assert "trust-remote-code" not in launch.serve_args


def test_the_models_own_option_goes_before_the_profiles() -> None:
    config = config_of(profile="pcie-riser", args={"max-num-seqs": 4})
    arguments = decide_server(config, HOST, "x", {}).arguments
    assert arguments["max-num-seqs"].value == 4
    assert arguments["distributed-timeout-seconds"].origin.source == "profile pcie-riser"


def test_a_value_knows_its_place_in_the_file() -> None:
    places = {"models.x.args.dtype": Position("c.yaml", 5, 7), "models.x.env.A": Position("c.yaml", 6, 7)}
    config = Config(models={"x": Model(model="a/b", args={"dtype": "half"}, env={"A": "1"})}, positions=places)
    assert str(decide_server(config, HOST, "x", {}).arguments["dtype"].origin) == "c.yaml:5"
    assert str(decide_server(config, HOST, "x", {}).environment["A"].origin) == "c.yaml:6"


def test_any_other_server_gets_the_same_protection_and_none_of_vllms_variables() -> None:
    launch = launch_of(command=("/usr/bin/llama-server", "--port", "8001"), port=8001)
    assert launch.argv == ("/usr/bin/llama-server", "--port", "8001")
    assert (launch.serve_file, launch.serve_args) == ("", None)
    assert launch.health == "http://127.0.0.1:8001/health"
    assert launch.oom_score_adj == 1000
    assert launch.io_scheduling_class == "best-effort"
    assert launch.env is not None
    assert not [name for name in launch.env if name.startswith("VLLM")]


def test_times_are_the_models_else_the_profiles_else_ours() -> None:
    riser = PROFILES["pcie-riser"]
    own = config_of(profile="pcie-riser", start_timeout=5.0, hang_timeout=7.0, stop_grace=0.0)
    assert {key: value.value for key, value in decide_server(own, HOST, "x", {}).timeouts.items()} == {
        "start_timeout": 5.0,
        "stall_timeout": riser.stall_timeout,
        "hang_timeout": 7.0,
        "stop_grace": 0.0,
    }
    assert {key: value.value for key, value in decide_server(config_of(), HOST, "x", {}).timeouts.items()} == DEFAULT_TIMES
    assert decide_server(own, HOST, "x", {}).arguments["shutdown-timeout"].value == 0


def test_vllm_is_watched_by_its_counters_and_any_other_server_by_its_health_alone() -> None:
    launch = launch_of(host="::", port=8003)
    assert launch.metrics == "http://[::1]:8003/metrics"
    assert launch.completions == "http://[::1]:8003/v1/completions"
    assert launch.checkpoint == "/var/lib/vllm-safe/models/Qwen/Qwen2.5-72B"
    assert launch_of(warm_up=False).completions == ""
    assert launch_of(args={"enable-sleep-mode": True}).completions == ""
    other = launch_of(command=("/usr/bin/llama-server",))
    assert (other.metrics, other.completions, other.checkpoint) == ("", "", "")


def test_the_journal_says_which_bound_won() -> None:
    launch = launch_on(Host(memory=16 * GIB, gpus=8), config_of(profile="pcie-riser"))
    assert any("protect" in line for line in launch.summary)
    assert any("pcie-riser" in line for line in launch.summary)


def test_the_launch_file_holds_all_of_it() -> None:
    nested = MappingProxyType({"compilation-config": MappingProxyType({"level": 3}), "lora-modules": ("ä", "b")})
    launch = launch_of(args=nested)
    again = Launch.from_json(launch.to_json())
    assert again.argv == launch.argv
    assert again.summary == launch.summary
    assert again.serve_args is not None
    assert again.serve_args["compilation-config"] == {"level": 3}
    assert again.to_json() == launch.to_json()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name": "x"}', '{"nam', json.dumps({"name": "x", "argv": [], "summary": [], "new": 1})])
def test_anything_else_is_no_launch_file(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any ValueError
        Launch.from_json(text)
