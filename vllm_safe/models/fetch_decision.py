"""Which files of a model are fetched, whether the disk has room for them, and whether a model can be served from what is there."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass

from vllm_safe.common.errors import Failure
from vllm_safe.common.findings import Finding, failed, passed
from vllm_safe.common.sizes import format_exact, format_size
from vllm_safe.models.model_files import ModelFiles

# Other forms of the same weights, which vLLM reads only where there are no safetensors. `*` stands for "/" as well.
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
class HubFile:
    """One file as the hub lists it. Of `size` bytes `here` need no transfer."""

    name: str
    size: int
    here: int = 0


@dataclass(frozen=True)
class FetchPlan:
    """What is fetched of one commit of one repository."""

    repo: str
    commit: str
    files: tuple[HubFile, ...]
    left_out: tuple[HubFile, ...]
    patterns: tuple[str, ...]  # that left_out matches

    @property
    def size(self) -> int:
        """Bytes of the model."""
        return sum(file.size for file in self.files)

    @property
    def missing(self) -> int:
        """Bytes to transfer."""
        return sum(file.size - file.here for file in self.files)

    @property
    def summary(self) -> str:
        """For example "11 files, 71.8 GiB, of Qwen/Qwen2.5-72B-Instruct-GPTQ-Int8 (revision 1a2b3c4d5e)"."""
        return f"{count_files(len(self.files))}, {format_size(self.size)}, of {self.repo} (revision {self.commit[:10]})"


def count_files(count: int) -> str:
    """For example "11 files"."""
    return f"{count} file" if count == 1 else f"{count} files"


def plan_fetch(repo: str, commit: str, files: tuple[HubFile, ...]) -> FetchPlan:
    """Choose from what the hub lists. Failure if there is nothing in it that vLLM could serve."""
    patterns = LEFT_OUT if any(_serves(file.name) for file in files) else ()
    left_out = tuple(file for file in files if _matches(file.name, patterns))
    wanted = tuple(file for file in files if file not in left_out)
    if not any(_matches(file.name, _WEIGHTS) for file in wanted):
        if any(file.name.endswith(".gguf") for file in files):
            hint = "Choose the repository that it was made from: it has safetensors."
            raise Failure(f"{repo} has its weights as GGUF only, each file a model of its own", hint=hint)
        raise Failure(f"{repo} has no weights that vLLM reads", hint="Choose a repository with safetensors.")
    return FetchPlan(repo, commit, wanted, left_out, patterns)


def _serves(name: str) -> bool:
    return name.endswith(".safetensors") and not _matches(name, LEFT_OUT)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


@dataclass(frozen=True)
class ModelDisk:
    """The file system that models are kept on, in bytes. `swapfile` is what a swapfile there is still to take."""

    folder: str
    free: int
    keep_free: int
    swapfile: int = 0


def require_room(plan: FetchPlan, room: ModelDisk) -> str:
    """What to warn of, or "". Failure if the files do not fit and leave `keep_free`."""
    left = room.free - plan.missing
    if left < room.keep_free:
        message = (
            f"not enough disk: {format_size(plan.missing)} are to be fetched and {format_size(room.keep_free)} must stay free"
            f" (swap.keep_free), but {room.folder} has {format_size(max(room.free, 0))} free"
        )
        hint = f"Free {format_size(room.keep_free - left)}, or mount a larger disk at {room.folder}."
        raise Failure(message, hint=hint)
    if left < room.keep_free + room.swapfile:
        return (
            f"the swapfile ({format_exact(room.swapfile)}) that the first start makes will not fit beside these files:"
            f" {format_size(left)} are left on that disk, of which {format_size(room.keep_free)} must stay free"
        )
    return ""


def find_model(name: str, files: ModelFiles) -> Finding:
    """Whether the model `name` can be served from what is on the disk, and what to do if not."""
    again = f"Run: vllm-safe fetch {name}"
    if files.complete:
        detail = f" ({count_files(files.count)}, {format_size(files.size)})" if files.count else ""
        return passed(f"the files of {files.repo or name} are in {files.folder}{detail}")
    if files.present:
        way_out = again if files.repo else "Copy it again."
        return failed(f"the model in {files.folder} is not complete: {files.problem}", way_out)
    if not files.repo:
        return failed(f"there is no folder {files.folder}", f"Set models.{name}.model to a folder with a model in it, or to a hub id.")
    if files.partial:
        return failed(f"{files.repo} is not fetched yet: {format_size(files.partial)} of it are here", f"{again}   (it goes on with them)")
    return failed(f"{files.repo} is not fetched yet", again)
