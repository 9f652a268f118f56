"""Compare the weights that our loader gives with those of vLLM's own, by an engine's own Python, with the plugin in PYTHONPATH.

`python loaded_weights.py FOLDER`: FOLDER has models. Each is loaded with one and two workers by either loader, into vLLM's own classes, and
its file is read by eight processes that compare each tensor with what the safetensors library gives. It prints JSON: for each model and
number of workers, whether all is the same. vLLM is imported once, and forked. `python loaded_weights.py --gptq MODEL FOLDER` makes one
more model like MODEL, whose weights are random and have the shapes of GPTQ.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

os.environ |= {"VLLM_HOST_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "HF_HUB_OFFLINE": "1", "VLLM_PLUGINS": ""}
THEIRS = "vllm.model_executor.model_loader.default_loader", "DefaultModelLoader"
OURS = "vllm_safe_loader.ring_loader", "RingModelLoader"
READERS = 8
BITS, GROUP = 4, 64  # of a quantised weight; how many have one scale


def main(folder: Path) -> None:
    """Print what is the same."""
    for module in ("torch", "safetensors", "vllm.engine.arg_utils", "vllm.distributed.parallel_state", OURS[0]):
        import_module(module)
    same: dict[str, bool] = {}
    for model in sorted(folder.iterdir()):
        for ranks in (1, 2):
            theirs, ours = (_fork(_digest, model, ranks, loader) for loader in (THEIRS, OURS))
            same[f"{model.name} {ranks}"] = theirs == ours and all(theirs)
        same[f"{model.name} {READERS}"] = set(_fork(_compare, model, READERS, OURS)) == {"same"}
    sys.stdout.write(json.dumps(same) + "\n")


def make_gptq(model: Path, folder: Path) -> None:
    """Make a model like another one, with random weights in the shapes of GPTQ."""
    torch, safetensors = import_module("torch"), import_module("safetensors.torch")
    shutil.copytree(model, folder)
    config = json.loads((model / "config.json").read_text("utf-8"))
    config["quantization_config"] = {"quant_method": "gptq", "bits": BITS, "group_size": GROUP, "desc_act": False, "sym": True}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    tensors = {}
    many = 32 // BITS  # in one number
    for name, tensor in safetensors.load_file(model / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            tensors[name] = tensor
            continue
        out, into = tensor.shape
        for kind, shape in (("qweight", (into // many, out)), ("qzeros", (into // GROUP, out // many))):
            tensors[name.replace("weight", kind)] = torch.randint(-(1 << 31), 1 << 31, shape, dtype=torch.int32)
        tensors[name.replace("weight", "scales")] = torch.rand((into // GROUP, out), dtype=torch.float16)
        tensors[name.replace("weight", "g_idx")] = torch.arange(into, dtype=torch.int32) // GROUP
    safetensors.save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _forget(model: Path) -> None:
    """Take the model's file out of the page cache: what is there is not read through the ring."""
    with (model / "model.safetensors").open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Worker(NamedTuple):
    """What a worker of a model has: vLLM's configuration and one of the loaders."""

    model: Path
    config: Any
    loader: Any


Work = Callable[[Worker], str]


def _fork(work: Work, model: Path, ranks: int, loader: tuple[str, str]) -> list[str]:
    """Have each rank do the work in a process of its own; return what they return, and "" where one fails."""
    _forget(model)
    with tempfile.TemporaryDirectory() as folder:
        results = [Path(folder) / str(rank) for rank in range(ranks)]
        children = []
        for rank, result in enumerate(results):
            if not (pid := os.fork()):
                os.environ["VLLM_DIST_IDENT"] = Path(folder).name  # as vLLM's executor does
                try:
                    result.write_text(_work(work, model, ranks, rank, loader), "utf-8")
                except BaseException:  # noqa: BLE001 - whatever it is, it ends here: this is a fork
                    traceback.print_exc()
                os._exit(0)
            children.append(pid)
        for pid in children:
            os.waitpid(pid, 0)
        return [result.read_text("utf-8") if result.exists() else "" for result in results]


def _work(work: Work, model: Path, ranks: int, rank: int, loader: tuple[str, str]) -> str:
    """Be a worker of the model."""
    torch, arguments, state = (import_module(name) for name in ("torch", "vllm.engine.arg_utils", "vllm.distributed.parallel_state"))
    torch.set_num_threads(1)
    parts = ranks if work is _digest else 1  # a tiny model cannot be split by eight
    config = arguments.EngineArgs(
        model=str(model), tensor_parallel_size=parts, enforce_eager=True, max_model_len=256, dtype="float16"
    ).create_engine_config()
    with import_module("vllm.config").set_current_vllm_config(config):
        meet = os.environ["VLLM_DIST_IDENT"]
        state.init_distributed_environment(ranks, rank, f"file://{tempfile.gettempdir()}/{meet}/meet", rank, "gloo")
        if parts == ranks:
            state.initialize_model_parallel(parts, backend="gloo")
        module, name = loader
        return work(Worker(model, config, getattr(import_module(module), name)(config.load_config)))


def _digest(worker: Worker) -> str:
    """Return a digest of the weights of a rank as they are in vLLM's modules, before they are made ready for kernels."""
    torch, types = import_module("torch"), import_module("vllm.utils.torch_utils")
    kind = worker.config.model_config
    with types.set_default_torch_dtype(kind.dtype):
        model = worker.loader.create_model(vllm_config=worker.config, model_config=kind)
        for parameter in model.parameters():
            parameter.data.zero_()  # what no file sets is the same
        worker.loader.load_weights(model, kind)
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _compare(worker: Worker) -> str:
    """Read all tensors; return "same" where each is as the safetensors library has it."""
    torch = import_module("torch")
    source = worker.loader.Source(str(worker.model), None)
    with import_module("safetensors").safe_open(str(worker.model / "model.safetensors"), framework="pt") as stored:
        left = set(stored.keys())
        for name, tensor in worker.loader._get_weights_iterator(source):
            left.remove(name)
            if tensor.dtype != (real := stored.get_tensor(name)).dtype or not torch.equal(tensor, real):
                return f"{name} is another"
    return f"{left} are missing" if left else "same"


if __name__ == "__main__":
    if sys.argv[1] == "--gptq":
        make_gptq(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main(Path(sys.argv[1]))
