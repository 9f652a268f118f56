"""The profiles have the values that the installation plan and its review asked for."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from vllm_safe.config.profiles import DEFAULT, PCIE_RISER, PROFILES
from vllm_safe.config.reader import load


def test_the_default_sets_nothing() -> None:
    assert (dict(DEFAULT.env), dict(DEFAULT.args), DEFAULT.start_timeout, DEFAULT.stop_grace) == ({}, {}, None, None)


def test_risers_get_the_plans_step_3_and_vllms_own_timeouts() -> None:
    assert PCIE_RISER.env == {
        "NCCL_P2P_DISABLE": "1",
        "NCCL_IB_DISABLE": "1",
        "NCCL_ASYNC_ERROR_HANDLING": "1",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
        "VLLM_ENGINE_READY_TIMEOUT_S": "14400",
        "VLLM_WORKER_MULTIPROC_METHOD": "fork",
        "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": "1800",
    }
    assert PCIE_RISER.args == {
        "disable-custom-all-reduce": True,
        "distributed-timeout-seconds": 7200,
        "cpu-distributed-timeout-seconds": 7200,
        "max-num-seqs": 64,
    }
    assert PCIE_RISER.start_timeout == float(PCIE_RISER.env["VLLM_ENGINE_READY_TIMEOUT_S"])


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_each_has_a_reason_a_source_and_values_that_a_model_could_have(profile: object, tmp_path: Path) -> None:
    facts = {field.name: getattr(profile, field.name) for field in dataclasses.fields(profile)}  # type: ignore[arg-type] # a frozen value
    assert facts["reason"].endswith(".")
    assert facts["source"]
    rows = [f"      {key}: {str(value).lower()}" for key, value in facts["args"].items()]
    rows += ["    env: {}"] if not facts["env"] else ["    env:", *(f"      {key}: {value}" for key, value in facts["env"].items())]
    file = tmp_path / "config.yaml"
    file.write_text("\n".join(["models:", "  m:", "    model: a/b", f"    profile: {facts['name']}", "    args:", *rows]) + "\n")
    model = load(file).models["m"]
    assert (model.args, model.env) == (facts["args"], facts["env"])
