"""Scenarios of a load: on a disk as slow as a hard disk and on a fast one, equal weights on the GPUs, and a cold start."""

from __future__ import annotations

import json
import os
import re
import statistics
import time
from pathlib import Path

from tests.gpu.box import CGROUPS, ENGINE, MIB, MODELS, SHORT, SHORT_GPTQ, Box, Figures, Wrong, cards, run, wait_for

HARD_DISK = f"IOReadBandwidthMax={MODELS} 120M\nIOReadIOPSMax={MODELS} 150"
PLUGINS = "/usr/lib/vllm-safe/engine-plugins"
_ENGINE_ENV = {"HOME": "/root", "HF_HUB_OFFLINE": "1", "VLLM_ALLREDUCE_USE_FLASHINFER": "0"}
ROUNDS = 3
PIECE = 512  # MiB that the disk's own pace is measured with


def compared(box: Box) -> Figures:
    """Load a model by vllm-safe's loader and by vLLM's own on the same slow disk, beside the pace of the disk. Both answer the same."""
    size = sum(file.stat().st_size for file in SHORT.glob("*.safetensors"))
    figures: Figures = {"GiB": round(size / (1 << 30), 2), "disk alone MB/s": _disk()}
    answers = set()
    for name in ("loaded", "loaded-by-vllm"):
        _forget(SHORT)
        start = box.must_start(name, 590)
        read = _reads(name)
        loading = start.phases["loading"]
        figures[name] = {
            "loading": loading,
            "MB/s": round(size / loading / 1e6, 1),
            "read": round(read["MiB"] * MIB / size, 2),
            "requests": read["requests"],
            "memory GiB": box.memory(name),
        }
        answers.add(box.ask(name, "a", 48))
        box.stop(name)
    if len(answers) != 1:
        raise Wrong(f"the answers differ: {answers}")
    return figures


def equal(_box: Box) -> Figures:
    """Compare the weights on each GPU, bit for bit: those of vllm-safe's loader and those of vLLM's own."""
    figures: Figures = {}
    most = len(cards())
    for folder, ranks in dict.fromkeys(((SHORT, most), (SHORT_GPTQ, 1), (SHORT_GPTQ, most))):
        ours, theirs = (_digests(folder, ranks, env) for env in ({"PYTHONPATH": PLUGINS}, {}))
        if ours != theirs:
            raise Wrong(f"{folder.name}, {ranks} ranks: {ours} and {theirs}")
        figures[f"{folder.name}, {ranks} ranks"] = ours
    return figures


def fast(_box: Box) -> Figures:
    """Compare the seconds in which vLLM has its weights, with either loader: from the page cache, and from this machine's own disk."""
    ranks = len(cards())
    figures: Figures = {}
    for how in ("cached", "disk"):
        took: dict[str, list[float]] = {"ours": [], "vLLM's": []}
        for number in range(ROUNDS):
            for who in sorted(took, reverse=number % 2 == 1):
                _forget(SHORT)
                if how == "cached":
                    run(f"cat {SHORT}/*.safetensors >/dev/null")
                log = _load(SHORT, ranks, {"PYTHONPATH": PLUGINS} if who == "ours" else {})
                took[who].append(max(map(float, re.findall(r"Loading weights took ([0-9.]+) seconds", log))))
        figures[how] = took | {"ours, to vLLM's": round(statistics.median(took["ours"]) / statistics.median(took["vLLM's"]), 2)}
    return figures


def cold(box: Box) -> Figures:
    """Start a model from a disk as slow as a hard disk, nothing in the page cache: without a record of the last start, and with one."""
    kept = Path("/var/cache/vllm-safe/engine-files/cold.json")
    figures: Figures = {}
    for how in ("nothing known", "known", "warm"):
        if how != "warm":
            run("sync; echo 3 >/proc/sys/vm/drop_caches")
        start = box.must_start("cold", 590)
        figures[how] = {"ready": start.seconds, "phases": start.phases, **_reads("cold")}
        wait_for("what it read of the engine is kept", kept.exists, 120)
        box.stop("cold")
    return figures


def _reads(name: str) -> dict[str, float]:
    """Return what a model has read from the disk that it has read most from: MiB, and requests."""
    disks = (CGROUPS / f"vllm@{name}.service/io.stat").read_text().splitlines()
    read = max((dict(field.split("=") for field in disk.split()[1:]) for disk in disks), key=lambda disk: int(disk["rbytes"]))
    return {"MiB": round(int(read["rbytes"]) / MIB, 1), "requests": int(read["rios"])}


def _digests(folder: Path, ranks: int, env: dict[str, str]) -> list[str]:
    digests: list[str] = json.loads(next(line for line in _load(folder, ranks, env).splitlines() if line.startswith('["')))
    return digests


def _load(folder: Path, ranks: int, env: dict[str, str]) -> str:
    """Load a model and digest its weights; return what was printed. env: that of vllm-safe's loader, {} for vLLM's own."""
    program = Path(__file__).with_name("weights.py")
    variables = " ".join(f"{key}={value}" for key, value in (_ENGINE_ENV | env).items())
    said = run(f"cd /; env {variables} {ENGINE}/bin/python {program} {folder} {ranks} 2>/tmp/weights.log")
    said += Path("/tmp/weights.log").read_text()  # noqa: S108 - a throwaway machine
    if ("reading the checkpoint in order" in said) != bool(env):
        raise Wrong("the loader is not the one that was asked for")
    return said


def _disk() -> float:
    """Return the MB per second of the disk itself, with the same limits: in order, in large requests, past the page cache."""
    file = max(SHORT.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    limits = " ".join(f"--property='{line}'" for line in HARD_DISK.splitlines())
    start = time.monotonic()
    run(f"systemd-run --wait --quiet {limits} dd if={file} of=/dev/null bs=1M count={PIECE} iflag=direct")
    return round(PIECE * MIB / (time.monotonic() - start) / 1e6, 1)


def _forget(folder: Path) -> None:
    """Drop the model's files from the page cache."""
    for file in folder.glob("*.safetensors"):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
