"""Decisions on model files: which are fetched, whether the disk has room for them, and whether a model can be served from disk."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass

from vllm_safe.common.errors import Failure
from vllm_safe.common.findings import Finding, failed, passed
from vllm_safe.common.sizes import format_exact, format_size
from vllm_safe.models.hub_model import HubFile
from vllm_safe.models.model_files import ModelFiles

# Other formats of the same weights, which vLLM reads only if there are no safetensors. `*` matches "/" as well.
LEFT_OUT = (
    "original/*",
    "metal/*",
    "onnx/*",
    "openvino/*",
    "coreml/*",
    "pytorch_model*.bin",
    "*.pth",
    "*.ckpt",
    "*.gguf",
    "*.onnx",
    "*.onnx_data",
    "*.h5",
    "*.msgpack",
    "*.ot",
    "*.tflite",
)
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")


@dataclass(frozen=True)
class FetchPlan:
    """The files to fetch of one commit of one repository."""

    repo: str
    commit: str
    files: tuple[HubFile, ...]
    left_out: tuple[HubFile, ...]
    patterns: tuple[str, ...]  # patterns that match left_out

    @property
    def size(self) -> int:
        """Size of the model in bytes."""
        return sum(file.size for file in self.files)

    @property
    def missing(self) -> int:
        """Bytes to transfer."""
        return sum(file.size - file.here for file in self.files)

    @property
    def summary(self) -> str:
        """Summary such as "11 files, 71.8 GiB, of Qwen/Qwen2.5-72B-Instruct-GPTQ-Int8 (revision 1a2b3c4d5e)"."""
        return f"{count_files(len(self.files))}, {format_size(self.size)}, of {self.repo} (revision {self.commit[:10]})"


def count_files(count: int) -> str:
    """Return a count of files as text, such as "11 files"."""
    return f"{count} file" if count == 1 else f"{count} files"


def plan_fetch(repo: str, commit: str, files: tuple[HubFile, ...]) -> FetchPlan:
    """Choose from the files that the hub lists. Raises Failure if they contain nothing that vLLM could serve."""
    patterns = LEFT_OUT if any(_serves(file.name) for file in files) else ()
    left_out = tuple(file for file in files if _matches(file.name, patterns))
    wanted = tuple(file for file in files if file not in left_out)
    if not any(_matches(file.name, _WEIGHTS) for file in wanted):
        if any(file.name.endswith(".gguf") for file in files):
            hint = "Choose the repository that it was converted from: that has safetensors."
            raise Failure(f"{repo} has its weights only as GGUF, where each file is a model of its own", hint=hint)
        raise Failure(f"{repo} has no weights that vLLM can read", hint="Choose a repository with safetensors.")
    return FetchPlan(repo, commit, wanted, left_out, patterns)


def _serves(name: str) -> bool:
    return name.endswith(".safetensors") and not _matches(name, LEFT_OUT)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


@dataclass(frozen=True)
class ModelDisk:
    """The file system of the models; sizes in bytes. `swapfile`: the size of a swapfile that is still to be made there."""

    folder: str
    free: int
    keep_free: int
    swapfile: int = 0


def require_room(plan: FetchPlan, room: ModelDisk) -> str:
    """Return a warning, or "". Raises Failure if the files do not fit while `keep_free` stays free."""
    left = room.free - plan.missing
    if left < room.keep_free:
        message = (
            f"not enough disk space: {format_size(plan.missing)} are to be fetched and {format_size(room.keep_free)} must stay free"
            f" (swap.keep_free), but {room.folder} has {format_size(max(room.free, 0))} free"
        )
        hint = f"Free {format_size(room.keep_free - left)}, or mount a larger disk at {room.folder}."
        raise Failure(message, hint=hint)
    if left < room.keep_free + room.swapfile:
        return (
            f"the swapfile ({format_exact(room.swapfile)}) that the first start creates will not fit beside these files:"
            f" {format_size(left)} will be left on that disk, of which {format_size(room.keep_free)} must stay free"
        )
    return ""


def find_model(name: str, files: ModelFiles) -> Finding:
    """Return whether the model `name` can be served from disk, and what to do if not."""
    again = f"Run: vllm-safe fetch {name}"
    if files.complete:
        detail = f" ({count_files(files.count)}, {format_size(files.size)})" if files.count else ""
        return passed(f"the files of {files.repo or name} are in {files.folder}{detail}")
    if files.present:
        way_out = again if files.repo else "Copy it again."
        return failed(f"the model in {files.folder} is incomplete: {files.problem}", way_out)
    if not files.repo:
        return failed(f"the folder {files.folder} does not exist", f"Set models.{name}.model to the folder of a model, or to a hub id.")
    if files.partial:
        return failed(f"{files.repo} is fetched only in part ({format_size(files.partial)})", f"{again}   (resumes the download)")
    return failed(f"{files.repo} is not fetched yet", again)
