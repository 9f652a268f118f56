"""Print a digest of a model's weights on each rank, as JSON: `python weights.py FOLDER RANKS`, in the engine's Python."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from importlib import import_module
from typing import Any


def digest(model: Any) -> str:  # noqa: ANN401 - a module of torch, which is not there when types are checked
    """Return the digest of all parameters and buffers of a rank, as they are after the load."""
    torch = import_module("torch")
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode() + tensor.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy().tobytes())
    return found.hexdigest()[:16]


if __name__ == "__main__":
    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # for a function that the workers are handed
    llm = import_module("vllm").LLM(
        sys.argv[1], tensor_parallel_size=int(sys.argv[2]), enforce_eager=True, max_model_len=512, gpu_memory_utilization=0.1
    )
    print(json.dumps(llm.apply_model(import_module("weights").digest)))  # by its module: the workers look it up there
