"""Record what vLLM says of its memory on real cards: `ENGINE/bin/python tests/truth/measure.py OUT [MODEL ...]`, without a network.

Each start is a fork of one process that has imported vLLM. It has dummy weights, and is ended once vLLM has printed how many tokens its KV
cache holds. OUT gets lines as in starts.jsonl; a start that failed has `error` in place of figures. It uses vLLM's own Python, and only the
standard library beside vLLM.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

MODELS = Path(__file__).with_name("models.json")
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "fork",
    "VLLM_LOGGING_LEVEL": "DEBUG",
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
    # Nothing is compiled with nvcc.
    "VLLM_ALLREDUCE_USE_FLASHINFER": "0",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "VLLM_USE_DEEP_GEMM": "0",
}
USUAL: dict[str, Any] = {"max_model_len": 8192, "max_num_seqs": 64, "max_num_batched_tokens": 2048, "gpu_memory_utilization": 0.9}
EAGER: dict[str, Any] = {"enforce_eager": True}
MANY: dict[str, Any] = {"max_num_seqs": 256, "max_num_batched_tokens": 8192}
TWO: dict[str, Any] = {"tensor_parallel_size": 2, "disable_custom_all_reduce": True}
LONGEST = 150.0  # seconds of one start
WEIGHTS = re.compile(r"Model loading took ([\d.]+) GiB memory")
TOKENS = re.compile(r"KV cache size: ([\d,]+) tokens")


def starts(names: list[str], cards: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the models and the arguments to measure."""
    for name in names:
        yield name, USUAL | EAGER
        yield name, USUAL | EAGER | MANY
        yield name, USUAL
        if cards > 1:
            yield name, USUAL | EAGER | TWO


def measure(folder: Path, arguments: dict[str, Any], log: Path) -> dict[str, Any]:
    """Start vLLM once. Return its figures, or the end of what it printed."""
    pid = os.fork()
    if pid == 0:
        _serve(folder, arguments, log)
    end, text, ended = time.monotonic() + LONGEST, "", False
    while time.monotonic() < end and not ended and not TOKENS.search(text):
        time.sleep(0.2)
        ended = os.waitpid(pid, os.WNOHANG)[0] == pid
        text = log.read_text(errors="replace") if log.exists() else ""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    if not ended:
        os.waitpid(pid, 0)
    tokens = TOKENS.search(text)
    if not tokens:
        return {"error": text[-1000:]}
    return {"weights_gib": [float(size) for size in WEIGHTS.findall(text)], "kv_tokens": int(tokens[1].replace(",", ""))}


def _serve(folder: Path, arguments: dict[str, Any], log: Path) -> None:
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if arguments.get("tensor_parallel_size", 1) == 1:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # everything in this process
    try:
        import_module("vllm").LLM(model=str(folder), load_format="dummy", skip_tokenizer_init=True, **arguments)
    except BaseException:  # noqa: BLE001 - the process ends here
        traceback.print_exc()
    os._exit(1)


def cards() -> list[tuple[str, int]]:
    """Return the name of each card, and the MiB in use."""
    query = ["nvidia-smi", "--query-gpu=name,memory.used", "--format=csv,noheader,nounits"]
    rows = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    return [(row.rpartition(", ")[0], int(row.rpartition(", ")[2])) for row in rows]


def main(out: Path, wanted: list[str]) -> None:
    """Measure each start, and append a line for it."""
    os.environ.update(ENVIRONMENT)
    for module in ("vllm.entrypoints.llm", "vllm.v1.engine.llm_engine", "vllm.v1.worker.gpu_worker", "transformers"):
        import_module(module)
    configs, there = json.loads(MODELS.read_text()), cards()
    with tempfile.TemporaryDirectory() as root:
        for name, arguments in starts(wanted or list(configs), len(there)):
            folder = Path(root, name)
            folder.mkdir(exist_ok=True)
            (folder / "config.json").write_text(json.dumps(configs[name]))
            row = {"model": name, "card": there[0][0].removeprefix("NVIDIA "), "arguments": arguments}
            row |= measure(folder, arguments, Path(root, "log"))
            with out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row)[:200], flush=True)
            while any(used > there[number][1] + 500 for number, (_, used) in enumerate(cards())):
                time.sleep(0.3)  # until the driver has taken the memory back


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
