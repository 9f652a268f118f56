"""Metrics for Prometheus, as a file for node_exporter's textfile collector. The names follow prometheus.io/docs/practices/naming."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vllm_safe.common.metric_labels import render_labels
from vllm_safe.contract.recorded_run import Sample, Start
from vllm_safe.contract.small_files import remove_if_possible, write_whole
from vllm_safe.contract.state_file import PHASES

EVERY = 15.0  # seconds: the scrape interval in Prometheus' example configuration

# Field of Sample -> (name, labels, HELP text).
_GAUGES: dict[str, tuple[str, dict[str, str], str]] = {
    "memory": ("memory_charged_bytes", {}, "All memory charged to the model, page cache included."),
    "anon": ("memory_bytes", {"type": "anon"}, "Memory of the model by type."),
    "shmem": ("memory_bytes", {"type": "shmem"}, ""),
    "file": ("memory_bytes", {"type": "file"}, ""),
    "swap": ("memory_bytes", {"type": "swap"}, ""),
    "memory_pressure": (
        "pressure_ratio",
        {"resource": "memory"},
        "Share of the time in which all tasks of the model were stalled (PSI, full).",
    ),
    "io_pressure": ("pressure_ratio", {"resource": "io"}, ""),
    "os_memory_pressure": ("system_pressure_ratio", {"resource": "memory"}, "The same for the operating system's slices, the highest."),
    "os_io_pressure": ("system_pressure_ratio", {"resource": "io"}, ""),
    "major_faults": ("major_faults_per_second", {}, "Major page faults of the model."),
    "cpu": ("cpu_cores", {}, "CPU cores that the model uses."),
    "read": ("checkpoint_read_bytes", {}, "Bytes of the checkpoint that have been read in this start."),
    "requests": ("requests_running", {}, "Running requests."),
}
# Field of Gpu -> likewise.
_GPU_GAUGES: dict[str, tuple[str, dict[str, str], str]] = {
    "power": ("gpu_power_watts", {}, "Power that a GPU draws."),
    "temperature": ("gpu_temperature_celsius", {}, "Temperature of a GPU."),
    "heat": ("gpu_throttled_ratio", {"reason": "heat"}, "Share of the time in which the clocks of a GPU were lowered, by reason."),
    "capped": ("gpu_throttled_ratio", {"reason": "power_limit"}, ""),
    "braked": ("gpu_throttled_ratio", {"reason": "hardware"}, ""),
    "lanes": ("gpu_pcie_lanes", {}, "Lanes of the PCIe link of a GPU."),
    "generation": ("gpu_pcie_generation", {}, "Generation of the PCIe link of a GPU, which is lower while the GPU is idle."),
}
_LIMITS = {"memory_max": "memory", "swap_max": "swap"}


def textfile_path(folder: str, name: str) -> str:
    """Return the path of the file of one model in the collector's directory."""
    return f"{folder}/vllm-safe-{name}.prom"


def publish_metrics(folder: str, start: Start, sample: Sample) -> None:
    """Write the file. Raises OSError. It is not synced against a power cut: the next one follows a few seconds later."""
    write_whole(textfile_path(folder, start.name), render_metrics(start, sample).encode(), 0o644, sync=False)


def withdraw_metrics(folder: str, name: str) -> None:
    """Remove the file: metrics of a model that no longer runs are wrong."""
    remove_if_possible(textfile_path(folder, name))


def render_metrics(start: Start, sample: Sample) -> str:
    """Return the text of the file."""
    model = {"model": start.name}
    lines: list[str] = []
    families: dict[str, tuple[str, list[str]]] = {}
    for name, labels, value, doc in _rows(start, sample):
        families.setdefault(name, (doc, []))[1].append(f"vllm_safe_model_{name}{render_labels(model | labels)} {value}")
    for name, (doc, rows) in families.items():
        kind = "counter" if name.endswith("_total") else "gauge"
        lines += [f"# HELP vllm_safe_model_{name} {doc}", f"# TYPE vllm_safe_model_{name} {kind}", *rows]
    return "\n".join(lines) + "\n"


def _rows(start: Start, sample: Sample) -> Iterator[tuple[str, dict[str, str], Any, str]]:
    for field, (name, labels, doc) in _GAUGES.items():
        if (value := getattr(sample, field)) is not None:
            yield name, labels, value, doc
    if sample.tokens is not None:
        yield "generation_tokens_total", {}, sample.tokens, "Tokens generated in this start."
    for key, kind in _LIMITS.items():
        if key in start.limits:
            yield "memory_limit_bytes", {"type": kind}, start.limits[key], "Limits of the model."
    for index, gpu in enumerate(sample.gpus):
        card = {"gpu": str(index)}
        yield "gpu_memory_used_bytes", card, gpu.used, "Memory of a GPU in use, by any program."
        yield "gpu_memory_total_bytes", card, gpu.total, "Memory of a GPU."
        yield "gpu_busy_ratio", card, gpu.busy, "Share of the time in which a GPU was busy."
        for field, (name, more, doc) in _GPU_GAUGES.items():
            if (value := getattr(gpu, field)) is not None:
                yield name, card | more, value, doc
    yield "start_time_seconds", {}, start.time, "Unix time of this start."
    yield "restarts", {}, start.restart, "Automatic restarts that count towards the limit of three, after which the model stays down."
    for phase in PHASES:
        yield "phase", {"phase": phase}, int(phase == sample.phase), "1 for the present phase, 0 for all others."
