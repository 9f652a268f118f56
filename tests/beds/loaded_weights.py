"""Compare the weights that our loader gives with those of vLLM's own, by an engine's own Python, with the plugin in PYTHONPATH.

`python loaded_weights.py --make FOLDER` makes the models `bf16` and `gptq` there, with random weights. `python loaded_weights.py FOLDER`
loads each model in FOLDER with either loader into vLLM's own classes, with one, two and eight workers. It prints JSON: for each model and
number of workers, whether all weights are the same. vLLM is imported once, and forked.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ |= {"VLLM_HOST_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "HF_HUB_OFFLINE": "1", "VLLM_PLUGINS": ""}
THEIRS = "vllm.model_executor.model_loader.default_loader", "DefaultModelLoader"
OURS = "vllm_safe_loader.ring_loader", "RingModelLoader"
# What all processes need is imported before they are forked.
IMPORTED = (
    *("torch", "vllm.engine.arg_utils", "vllm.distributed.parallel_state", "vllm.model_executor.models.qwen2"),
    *("vllm.model_executor.layers.quantization.auto_gptq", THEIRS[0], OURS[0]),
)
RANKS = (1, 2, 8)
BITS, GROUP = 4, 64  # of a quantised weight; how many have one scale


def main(folder: Path) -> None:
    """Print what is the same."""
    for module in IMPORTED:
        import_module(module)
    same: dict[str, bool] = {}
    for model in sorted(folder.iterdir()):
        for ranks in RANKS:
            config = _configure(model, ranks)
            theirs, ours = (_fork(model, ranks, config, loader) for loader in (THEIRS, OURS))
            same[f"{model.name} {ranks}"] = theirs == ours and all(theirs)
    sys.stdout.write(json.dumps(same) + "\n")


def make_models(folder: Path) -> None:
    """Make a model that eight workers can share, and one like it in the shapes of GPTQ."""
    torch, transformers = import_module("torch"), import_module("transformers")
    config = transformers.Qwen2Config(
        vocab_size=512, hidden_size=512, intermediate_size=1024, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=8
    )
    transformers.Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "bf16")
    _make_gptq(folder / "bf16", folder / "gptq")


def _make_gptq(model: Path, folder: Path) -> None:
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


def _fork(model: Path, ranks: int, config: Any, loader: tuple[str, str]) -> list[str]:  # noqa: ANN401 - the type is vLLM's
    """Have each rank load the model in a process of its own. Return the digests of their weights, "" for one that fails."""
    _forget(model)
    with tempfile.TemporaryDirectory() as folder:
        results = [Path(folder) / str(rank) for rank in range(ranks)]
        children = []
        for rank, result in enumerate(results):
            if not (pid := os.fork()):
                os.environ["VLLM_DIST_IDENT"] = Path(folder).name  # as vLLM's executor does
                try:
                    result.write_text(_digest(config, ranks, rank, loader), "utf-8")
                except BaseException:  # noqa: BLE001 - whatever it is, it ends here: this is a fork
                    traceback.print_exc()
                os._exit(0)
            children.append(pid)
        for pid in children:
            os.waitpid(pid, 0)
        return [result.read_text("utf-8") if result.exists() else "" for result in results]


def _configure(folder: Path, ranks: int) -> Any:  # noqa: ANN401 - the type is vLLM's
    """Return vLLM's configuration for `ranks` workers."""
    arguments = import_module("vllm.engine.arg_utils").EngineArgs(
        model=str(folder), skip_tokenizer_init=True, tensor_parallel_size=ranks, enforce_eager=True, max_model_len=256, dtype="float16"
    )
    return arguments.create_engine_config()


def _digest(config: Any, ranks: int, rank: int, loader: tuple[str, str]) -> str:  # noqa: ANN401 - the type is vLLM's
    """Return a digest of the weights of a rank as they are in vLLM's modules, before they are made ready for kernels."""
    torch, state = import_module("torch"), import_module("vllm.distributed.parallel_state")
    types = import_module("vllm.utils.torch_utils")
    torch.set_num_threads(1)
    digest = hashlib.sha256()
    with import_module("vllm.config").set_current_vllm_config(config):
        meet = os.environ["VLLM_DIST_IDENT"]
        state.init_distributed_environment(ranks, rank, f"file://{tempfile.gettempdir()}/{meet}/meet", rank, "gloo")
        state.initialize_model_parallel(ranks, backend="gloo")
        module, name = loader
        load = getattr(import_module(module), name)(config.load_config)
        with types.set_default_torch_dtype(config.model_config.dtype):
            model = load.create_model(vllm_config=config, model_config=config.model_config)
            for parameter in model.parameters():
                parameter.data.zero_()  # what no file sets is the same
            load.load_weights(model, config.model_config)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    if sys.argv[1] == "--make":
        make_models(Path(sys.argv[2]))
    else:
        main(Path(sys.argv[1]))
