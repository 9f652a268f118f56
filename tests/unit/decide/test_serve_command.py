"""The launch of one server."""

from __future__ import annotations

import json
from types import MappingProxyType

import pytest

from vllm_safe.common.sizes import GIB
from vllm_safe.config.profiles import PROFILES
from vllm_safe.config.settings import Config, Model, Position, settings_of
from vllm_safe.contract.default_times import DEFAULT_TIMES
from vllm_safe.contract.launch_file import Launch
from vllm_safe.decide.limits import decide_budget
from vllm_safe.decide.serve_command import decide_launch, decide_loader, decide_server, health_url
from vllm_safe.host.host_facts import Host

HOST = Host(memory=16 * GIB)


def config_of(**model: object) -> Config:
    values = {"model": "Qwen/Qwen2.5-72B"} | model if "command" not in model else model
    return Config(models=MappingProxyType({"x": Model(**values)}))  # type: ignore[arg-type]  # the settings have these names


def launch_of(**model: object) -> Launch:
    return launch_on(HOST, config_of(**model))


def launch_on(host: Host, config: Config) -> Launch:
    return decide_launch(config, "x", decide_server(config, host, "x", {}), decide_budget(config, host).of("x"))


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


def test_a_path_is_served_as_it_is() -> None:
    arguments = decide_server(config_of(model="/data/qwen"), HOST, "x", {}).arguments
    assert arguments["model"].value == "/data/qwen"


def test_the_models_own_option_goes_before_the_profiles() -> None:
    config = config_of(profile="pcie-riser", args={"max-num-seqs": 4})
    arguments = decide_server(config, HOST, "x", {}).arguments
    assert arguments["max-num-seqs"].value == 4
    assert arguments["distributed-timeout-seconds"].origin.source == "profile pcie-riser"


def test_the_models_own_variable_goes_before_the_profiles_and_ours() -> None:
    config = config_of(profile="pcie-riser", env={"NCCL_P2P_DISABLE": "0", "MAX_JOBS": "2"})
    environment = decide_server(config, HOST, "x", {}).environment
    assert environment["NCCL_P2P_DISABLE"].value == "0"
    assert environment["MAX_JOBS"].value == "2"
    assert environment["NCCL_IB_DISABLE"].origin.source == "profile pcie-riser"


def test_a_drop_in_of_the_unit_goes_before_ours_and_after_the_files() -> None:
    config = config_of(profile="pcie-riser", gpus=(1,), env={"MAX_JOBS": "2"})
    given = {"MAX_JOBS": "9", "NCCL_IB_DISABLE": "0", "CUDA_VISIBLE_DEVICES": "7", "OMP_NUM_THREADS": "4", "X": "a b", "VLLM_API_KEY": "k"}
    server = decide_server(config, HOST, "x", given)
    environment = server.environment
    values = {name: environment[name].value for name in given if name in environment}
    assert values == {"MAX_JOBS": "2", "NCCL_IB_DISABLE": "1", "CUDA_VISIBLE_DEVICES": "1", "OMP_NUM_THREADS": "4", "X": "a b"}
    assert str(environment["X"].origin) == "Environment= of vllm@x.service (systemctl cat vllm@x.service)"
    launch = decide_launch(config, "x", server, decide_budget(config, HOST).of("x"))
    assert launch.env == {name: sourced.value for name, sourced in environment.items()}


def test_a_value_knows_its_place_in_the_file() -> None:
    places = {"models.x.args.dtype": Position("c.yaml", 5, 7), "models.x.env.A": Position("c.yaml", 6, 7)}
    config = Config(models={"x": Model(model="a/b", args={"dtype": "half"}, env={"A": "1"})}, positions=places)
    assert str(decide_server(config, HOST, "x", {}).arguments["dtype"].origin) == "c.yaml:5"
    assert str(decide_server(config, HOST, "x", {}).environment["A"].origin) == "c.yaml:6"


def test_telemetry_is_off_and_no_variable_is_named_like_ours() -> None:
    env = launch_of(profile="pcie-riser").env or {}
    assert env["VLLM_NO_USAGE_STATS"] == env["DO_NOT_TRACK"] == env["HF_HUB_OFFLINE"] == "1"
    assert env["VLLM_USE_FLASHINFER_SAMPLER"] == "0"
    assert not [name for name in env if name.startswith("VLLM_SAFE")]  # vLLM warns about unknown VLLM_ variables
    assert not {"VLLM_API_KEY", "HF_TOKEN"} & set(env)


def test_everything_that_is_written_lies_in_folders_of_the_unit() -> None:
    env = launch_of().env or {}
    folders = [env[name] for name in env if name.endswith(("_DIR", "_ROOT", "_HOME", "_PATH", "_BASE")) or name in {"HOME", "HF_HOME"}]
    assert len(folders) >= 10
    assert all(folder.startswith(("/var/cache/vllm-safe", "/var/lib/vllm-safe/home", "/run/vllm/x")) for folder in folders)


def test_any_other_server_gets_the_same_protection_and_none_of_vllms_variables() -> None:
    launch = launch_of(command=("/usr/bin/llama-server", "--port", "8001"), port=8001)
    assert launch.argv == ("/usr/bin/llama-server", "--port", "8001")
    assert (launch.serve_file, launch.serve_args) == ("", None)
    assert launch.health == "http://127.0.0.1:8001/health"
    assert launch.oom_score_adj == 1000
    assert launch.io_scheduling_class == "best-effort"
    assert launch.env is not None
    assert not [name for name in launch.env if name.startswith("VLLM")]


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000/health"),
        ("0.0.0.0", "http://127.0.0.1:8000/health"),  # noqa: S104 - a text
        ("::", "http://[::1]:8000/health"),
        ("fe80::1", "http://[fe80::1]:8000/health"),
        ("box.lan", "http://box.lan:8000/health"),
    ],
)
def test_health_is_asked_where_the_server_can_be_reached(host: str, url: str) -> None:
    assert health_url(Model(model="a/b", host=host)) == url


def test_the_health_url_of_the_model_wins() -> None:
    assert launch_of(health="http://127.0.0.1:9/up").health == "http://127.0.0.1:9/up"


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


LOOPBACK = {"VLLM_HOST_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}


def test_the_processes_of_a_model_talk_over_loopback() -> None:
    env = launch_of(args={"tensor-parallel-size": 2}).env or {}
    assert {name: env[name] for name in LOOPBACK} == LOOPBACK
    assert not LOOPBACK.keys() & (launch_of(command=("/bin/server",)).env or {}).keys()


@pytest.mark.parametrize("args", [{"nnodes": 2, "node-rank": 1}, {"master-addr": "10.0.0.1"}, {"distributed-executor-backend": "ray"}])
def test_a_model_on_several_machines_does_not(args: dict[str, object]) -> None:
    assert not LOOPBACK.keys() & (launch_of(args=args).env or {}).keys()


def test_nothing_is_compiled_with_nvcc_unless_it_is_asked_for() -> None:
    env = launch_of(env={"VLLM_USE_FLASHINFER_SAMPLER": "1"}).env or {}
    assert (env["VLLM_USE_FLASHINFER_SAMPLER"], env["VLLM_ALLREDUCE_USE_FLASHINFER"]) == ("1", "0")


def test_an_equal_start_measures_no_memory_again() -> None:
    assert (launch_of().env or {})["VLLM_ENABLE_STARTUP_PLAN"] == "1"
    assert "VLLM_ENABLE_STARTUP_PLAN" not in (launch_of(command=("/bin/server",)).env or {})


@pytest.mark.parametrize("what", [{}, {"command": ("/bin/server",)}])
def test_the_cards_of_a_model_are_those_of_nvidia_smi(what: dict[str, object]) -> None:
    env = launch_of(gpus=(3, 1), **what).env or {}
    assert (env["CUDA_VISIBLE_DEVICES"], env["CUDA_DEVICE_ORDER"]) == ("3,1", "PCI_BUS_ID")


@pytest.mark.parametrize("what", [{}, {"command": ("/bin/server",)}])
def test_a_model_without_cards_of_its_own_sees_all(what: dict[str, object]) -> None:
    assert "CUDA_VISIBLE_DEVICES" not in (launch_of(**what).env or {})


@pytest.mark.parametrize(
    ("host", "args", "method"),
    [
        (Host(memory=16 * GIB, cpus=2), {"tensor-parallel-size": 8}, "fork"),
        (Host(memory=128 * GIB, cpus=4), {"pipeline-parallel-size": 2}, "fork"),
        (Host(memory=16 * GIB, cpus=32), {"tensor-parallel-size": 2}, "fork"),
        (Host(memory=128 * GIB, cpus=32), {"tensor-parallel-size": 8}, None),  # vLLM's own choice
        (Host(memory=16 * GIB, cpus=2), {}, None),
        (Host(memory=16 * GIB, cpus=2), {"tensor-parallel-size": 8, "nnodes": 2}, None),
    ],
)
def test_workers_are_forked_where_there_is_little_room(host: Host, args: dict[str, object], method: str | None) -> None:
    environment = decide_server(config_of(args=args), host, "x", {}).environment
    found = environment.get("VLLM_WORKER_MULTIPROC_METHOD")
    assert (found and found.value) == method


def test_risers_mean_a_small_machine() -> None:
    config = config_of(profile="pcie-riser", args={"tensor-parallel-size": 8})
    environment = decide_server(config, Host(memory=256 * GIB, cpus=64), "x", {}).environment
    assert environment["VLLM_WORKER_MULTIPROC_METHOD"].value == "fork"


@pytest.mark.parametrize(
    ("model", "ours"),
    [
        ({}, True),
        ({"load": "vllm"}, False),
        ({"load": "auto"}, True),
        ({"load": "auto", "args": {"load-format": "auto"}}, True),
        ({"load": "auto", "args": {"load-format": "runai_streamer"}}, False),
        ({"load": "auto", "args": {"nnodes": 2}}, False),
        ({"load": "auto", "command": ("/bin/server",)}, False),
    ],
)
def test_our_loader_is_there_if_it_is_asked_for_and_can_be(model: dict[str, object], ours: bool) -> None:  # noqa: FBT001
    environment = launch_of(**model).env
    assert environment.get("PYTHONPATH") == ("/usr/lib/vllm-safe/engine-plugins" if ours else None)


def test_why_vllm_itself_reads_the_weights() -> None:
    config = config_of(load="auto", args={"load-format": "dummy"})
    decided = decide_loader(config, "x", decide_server(config, HOST, "x", {}).arguments)
    assert (decided.value, decided.origin.note) == ("vllm", "load-format is dummy")


def test_a_models_own_python_path_goes_before_our_loader() -> None:
    assert launch_of(load="auto", env={"PYTHONPATH": "/srv/mine"}).env["PYTHONPATH"] == "/srv/mine"
