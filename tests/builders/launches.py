"""The launch file of a model, as it is decided from its settings."""

from __future__ import annotations

from types import MappingProxyType

from vllm_safe.common.sizes import GIB
from vllm_safe.config.settings import Config, Model
from vllm_safe.contract.launch_file import Launch
from vllm_safe.decide.limits import decide_budget
from vllm_safe.decide.serve_command import decide_launch, decide_server
from vllm_safe.host.host_facts import Host

HOST = Host(memory=16 * GIB)


def config_of(**model: object) -> Config:
    values = {"model": "Qwen/Qwen2.5-72B"} | model if "command" not in model else model
    return Config(models=MappingProxyType({"x": Model(**values)}))  # type: ignore[arg-type]  # the settings have these names


def launch_of(**model: object) -> Launch:
    return launch_on(HOST, config_of(**model))


def launch_on(host: Host, config: Config) -> Launch:
    return decide_launch(config, "x", decide_server(config, host, "x", {}), decide_budget(config, host).of("x"))
