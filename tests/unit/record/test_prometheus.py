"""The file for Prometheus."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.builders.runs import make_run
from vllm_safe.contract.recorded_run import Gpu, Sample
from vllm_safe.contract.state_file import PHASES
from vllm_safe.record.prometheus import publish_metrics, render_metrics, withdraw_metrics

LINE = re.compile(r'vllm_safe_model_([a-z_]+)\{(?:[a-z_]+="[^"]*",?)+\} (-?[0-9.e+]+)')


def test_names_units_and_labels() -> None:
    run = make_run(gpus=2)
    text = render_metrics(run.start, run.samples[-1])
    assert f'vllm_safe_model_memory_bytes{{model="qwen72b",type="anon"}} {run.samples[-1].anon}\n' in text
    assert f'vllm_safe_model_memory_limit_bytes{{model="qwen72b",type="memory"}} {run.start.limits["memory_max"]}\n' in text
    assert 'vllm_safe_model_phase{model="qwen72b",phase="ready"} 1\n' in text
    assert text.count("vllm_safe_model_phase{") == len(PHASES)
    assert 'vllm_safe_model_gpu_busy_ratio{model="qwen72b",gpu="1"} 0.9\n' in text
    assert "# TYPE vllm_safe_model_generation_tokens_total counter\n" in text


def test_each_line_is_one_that_prometheus_takes() -> None:
    run = make_run(gpus=2)
    lines = render_metrics(run.start, run.samples[-1]).splitlines()
    rows = [line for line in lines if not line.startswith("#")]
    assert all(LINE.fullmatch(line) for line in rows), [line for line in rows if not LINE.fullmatch(line)]
    assert len({line.rpartition(" ")[0] for line in rows}) == len(rows), "a series twice is refused"
    # all rows of a family follow its HELP and TYPE lines
    families = [match[1] for line in rows if (match := LINE.match(line))]
    assert len([name for name, before in zip(families, ["", *families], strict=False) if name != before]) == len(set(families))
    assert {line.split()[2] for line in lines if line.startswith("# HELP")} == {f"vllm_safe_model_{name}" for name in families}
    assert all(len(line.split(maxsplit=3)) == 4 for line in lines if line.startswith("# HELP"))


def test_what_is_unknown_is_not_there() -> None:
    text = render_metrics(make_run().start, Sample(1.0, "loading"))
    assert "tokens" not in text
    assert "None" not in text


def test_it_is_there_for_everybody_and_then_it_is_gone(tmp_path: Path) -> None:
    run = make_run()
    publish_metrics(str(tmp_path), run.start, run.samples[-1])
    (file,) = tmp_path.iterdir()
    assert file.name == "vllm-safe-qwen72b.prom"
    assert file.stat().st_mode & 0o777 == 0o644
    withdraw_metrics(str(tmp_path), "qwen72b")
    assert list(tmp_path.iterdir()) == []
    withdraw_metrics(str(tmp_path), "qwen72b")


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    run = make_run()
    with pytest.raises(OSError, match="No such file"):
        publish_metrics(str(tmp_path / "x"), run.start, run.samples[-1])


def test_draw_heat_and_link_of_each_card() -> None:
    run = make_run(gpus=1)
    hot = run.samples[-1].gpus[0]._replace(power=131.7, temperature=91, heat=0.8, capped=0.0, lanes=1, generation=3)
    text = render_metrics(run.start, run.samples[-1]._replace(gpus=(hot,)))
    card = 'model="qwen72b",gpu="0"'
    assert f"vllm_safe_model_gpu_power_watts{{{card}}} 131.7\n" in text
    assert f"vllm_safe_model_gpu_temperature_celsius{{{card}}} 91\n" in text
    assert f'vllm_safe_model_gpu_throttled_ratio{{{card},reason="heat"}} 0.8\n' in text
    assert f'vllm_safe_model_gpu_throttled_ratio{{{card},reason="power_limit"}} 0.0\n' in text
    assert f"vllm_safe_model_gpu_pcie_lanes{{{card}}} 1\n" in text
    unknown = render_metrics(run.start, run.samples[-1]._replace(gpus=(Gpu(1, 2, 0.5),)))
    assert "gpu_busy_ratio" in unknown
    assert "gpu_power" not in unknown
