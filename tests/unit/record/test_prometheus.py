"""The file for Prometheus, and the GPU usage in it."""

from __future__ import annotations

import ctypes
import re
import time
from pathlib import Path
from typing import Any

import pytest

from tests.builders.runs import make_run
from vllm_safe.contract.recorded_run import Gpu, Sample
from vllm_safe.contract.state_file import PHASES
from vllm_safe.record.nvml_usage import NvmlCards
from vllm_safe.record.prometheus import publish_metrics, render_metrics, withdraw_metrics

LINE = re.compile(r'vllm_safe_model_([a-z_]+)\{(?:[a-z]+="[^"]*",?)+\} (-?[0-9.e+]+)')


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


class Nvml:
    """NVML with two GPUs, of which the second does not answer."""

    def __init__(self, start: int = 0) -> None:
        self._start = start

    def nvmlInit_v2(self) -> int:  # noqa: N802 - the name is that of NVML
        return self._start

    def nvmlDeviceGetCount_v2(self, number: Any) -> int:  # noqa: ANN401, N802
        number._obj.value = 2
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, device: Any) -> int:  # noqa: ANN401, N802
        device._obj.value = 100 + index
        return 0

    def nvmlDeviceGetMemoryInfo_v2(self, device: ctypes.c_void_p, memory: Any) -> int:  # noqa: ANN401, N802
        if device.value == 101:
            return 15  # NVML_ERROR_GPU_IS_LOST
        memory._obj.total, memory._obj.used = 11 << 30, 3 << 30
        return 0

    def nvmlDeviceGetUtilizationRates(self, device: ctypes.c_void_p, busy: Any) -> int:  # noqa: ANN401, N802
        busy._obj.gpu = 75
        return 15 if device.value == 101 else 0


def test_cards() -> None:
    cards = NvmlCards(Nvml())
    expected = (Gpu(3 << 30, 11 << 30, 0.75), Gpu(0, 0, 0.0))
    assert cards.read() == expected
    assert cards.ask(time.monotonic()) in {(), expected}, "it does not wait for them"
    until = time.monotonic() + 10
    while not (heard := cards.ask(time.monotonic())) and time.monotonic() < until:
        time.sleep(0.01)
    assert heard == expected
    assert cards.ask(time.monotonic() + 3600) == (), "what was heard an hour ago is not said again"


def test_a_driver_that_does_not_work_is_an_error() -> None:
    with pytest.raises(OSError, match="error 9"):
        NvmlCards(Nvml(start=9))
