"""`vllm-safe config`: what it prints means what the file means, and says where each value is from."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from vllm_safe.cli.main import main
from vllm_safe.common.sizes import GIB
from vllm_safe.config.reader import load
from vllm_safe.config.sample_config import sample_config
from vllm_safe.config.settings import Config
from vllm_safe.decide.effective_settings import effective_settings
from vllm_safe.decide.limits import decide_budget
from vllm_safe.decide.serve_command import decide_launch, decide_server
from vllm_safe.host.host_facts import Host

CONFIG = """\
limits: {swap_max: 80%}
models:
  big:
    model: acme/big
    profile: pcie-riser
    limits: {memory_max: 12G}
    args: {max-num-seqs: 8, speculative-config: {method: ngram, n: [1, 2]}, chat-template: "a: b # c"}
    env: {NCCL_P2P_DISABLE: "0", WORD: "on", EMPTY: ""}
    hang_timeout: 1h
  "null":
    command: [/usr/bin/python3, -m, "http.server", "--port", "8001"]
    port: 8001
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return path


def _printed(file: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert main(["config", *options, "--config", str(file)]) == 0
    return capsys.readouterr().out


def _every_line(text: str) -> str:
    """Return the sample with all that is a comment in it set."""
    return re.sub(r"^( +)#((  )?\w+:)", r"\1\2", text, flags=re.MULTILINE)


def _meant(config: Config) -> object:
    """Return the parts of all starts."""
    host = Host(memory=64 * GIB)
    budget = decide_budget(config, host)
    limits = [vars(budget.of(name)) for name in config.models]
    servers = {name: decide_server(config, host, name, {}) for name in config.models}
    starts = [
        (
            decide_launch(config, name, server, budget.of(name))._replace(summary=()),
            {key: sourced.value for key, sourced in server.arguments.items()},
        )
        for name, server in servers.items()
    ]
    return [{key: getattr(value, "value", value) for key, value in found.items()} for found in limits], starts


@pytest.mark.parametrize("text", [CONFIG, sample_config(), _every_line(sample_config()), "models: {}"])
def test_what_is_printed_is_a_configuration_that_means_the_same(text: str, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(text)
    again = file.with_name("again.yaml")
    again.write_text(_printed(file, capsys))
    before, after = load(file), load(again)
    values = [[(setting.path, setting.value) for setting in effective_settings(config)] for config in (before, after)]
    assert sorted(values[0]) == sorted(values[1])
    assert _meant(before) == _meant(after)


@pytest.mark.parametrize(
    ("path", "value", "origin"),
    [
        ("swap.size", 128 * GIB, "default"),
        ("limits.swap_max", "80%", "FILE:1"),
        ("models.big.limits.swap_max", "80%", "FILE:1"),
        ("models.big.limits.memory_max", 12 * GIB, "FILE:6"),
        ("models.big.args.max-num-seqs", 8, "FILE:7"),
        ("models.big.args.distributed-timeout-seconds", 7200, "profile pcie-riser"),
        ("models.big.env.NCCL_P2P_DISABLE", "0", "FILE:8"),
        ("models.big.hang_timeout", 3600, "FILE:9"),
        ("models.big.start_timeout", 4 * 3600, "profile pcie-riser"),
        ("models.null.start_timeout", 4 * 3600, "default"),
        ("models.null.api_key_file", None, "default"),
    ],
)
def test_each_value_says_where_it_is_from(path: str, value: object, origin: str, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(_printed(file, capsys, "--json"))
    for key in path.split("."):
        found = found[key]
    assert found == {"value": value, "origin": origin.replace("FILE", str(file))}
    name = re.escape(path.rpartition(".")[2])
    assert re.search(rf'^ *"?{name}"?: .*# {re.escape(found["origin"])}$', _printed(file, capsys), re.MULTILINE)


def test_the_sample_needs_no_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--sample", "--config", "/no/such/file"]) == 0
    assert capsys.readouterr().out == sample_config()


def test_what_cannot_be_is_refused(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--sample", "--json"]) == 2
    file.write_text("swap_: {}")
    assert main(["config", "--config", str(file)]) == 2
    assert f"{file}:1:1: unknown section 'swap_'" in capsys.readouterr().err
