"""The environment of a server, and the loader that reads its weights."""

from __future__ import annotations

import pytest

from tests.builders.launches import HOST, config_of, launch_of
from vllm_safe.common.sizes import GIB
from vllm_safe.decide.limits import decide_budget
from vllm_safe.decide.serve_command import decide_launch, decide_server
from vllm_safe.decide.server_environment import decide_loader
from vllm_safe.host.host_facts import Host


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
