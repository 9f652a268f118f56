"""vLLM's default loader, whose safetensors files are read window by window. Everything else of a load is vLLM's."""

from __future__ import annotations

import mmap
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from math import prod
from types import MappingProxyType

import torch
from tqdm import tqdm
from vllm.config import get_current_vllm_config_or_none
from vllm.distributed.parallel_state import get_world_group
from vllm.logger import init_logger
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.ep_weight_filter import should_skip_weight
from vllm.model_executor.model_loader.weight_utils import _BAR_FORMAT, _get_fs_type, _natural_sort_key, enable_tqdm

from .cache_room import decide_window, read_room
from .shard_layout import ReadWindow, StoredTensor, UnknownLayout, read_layout, split_into_windows
from .window_walk import walk_windows

_SHARDS = "Loading safetensors checkpoint shards"  # as vLLM prints it: launch/load_progress.py reads it
_log = init_logger("vllm.vllm_safe_loader")
_NETWORK = frozenset({"nfs", "nfs4", "lustre", "cifs", "smb3", "ceph", "9p", "fuse.sshfs"})
# Kinds of safetensors whose elements are whole bytes and have one type of torch.
_TYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U8": torch.uint8,
        "BOOL": torch.bool,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
    }
)
_SIZES = {kind: kind_of.itemsize for kind, kind_of in _TYPES.items()}


class WindowedModelLoader(DefaultModelLoader):  # type: ignore[misc] # vLLM is not there when types are checked
    """The default loader. Where it cannot read by windows, it says why and reads as vLLM does."""

    def _get_weights_iterator(self, source: DefaultModelLoader.Source) -> Iterator[tuple[str, torch.Tensor]]:
        theirs: Iterator[tuple[str, torch.Tensor]] = super()._get_weights_iterator(source)  # nothing is read before it is iterated
        try:
            files = self._files(source)
            windows, room, drop = _plan(files)
        except UnknownLayout as reason:
            _log.info_once("vllm-safe: vLLM reads the checkpoint itself: %s", reason)
            return theirs
        _log.info_once(
            "vllm-safe: the checkpoint is read in order, in %d windows; the page cache may have %d MiB", len(windows), room >> 20
        )
        return self._walk(source.prefix, windows, room, drop)

    def _files(self, source: DefaultModelLoader.Source) -> list[str]:
        """Return the files in vLLM's order. Raises UnknownLayout where another way of reading is wanted or needed."""
        config = self.load_config
        parallel = get_current_vllm_config_or_none()
        if config.load_format not in {"auto", "safetensors", "hf"} or config.safetensors_load_strategy not in {None, "lazy"}:
            raise UnknownLayout("its options ask for that")
        if config.model_loader_extra_config or self._encoder_only_lm_prefixes is not None or source.is_unused_weight is not None:
            raise UnknownLayout("its options ask for that")
        if parallel is None or parallel.parallel_config.nnodes > 1 or parallel.parallel_config.data_parallel_size > 1:
            raise UnknownLayout("the model is on several machines, or more than once on this one")
        if parallel.speculative_config is not None:
            raise UnknownLayout("a second model is loaded beside it")
        found = self._prepare_weights(
            source.model_or_path, source.subfolder, source.revision, source.fall_back_to_pt, source.allow_patterns_overrides
        )
        files: list[str] = sorted(found[1], key=_natural_sort_key)
        if not found[2]:
            raise UnknownLayout("it is not in safetensors files")
        if (kind := _get_fs_type(files)) in _NETWORK:
            raise UnknownLayout(f"it is on {kind}")
        return files

    def _walk(self, prefix: str, windows: Sequence[ReadWindow], room: int, drop: bool) -> Generator[tuple[str, torch.Tensor]]:  # noqa: FBT001
        group = get_world_group()

        def meet() -> None:
            if group.world_size > 1:
                torch.distributed.barrier(group=group.cpu_group)

        files = [window.file for window in windows]
        shards = tqdm(
            desc=_SHARDS, total=len(set(files)), disable=not enable_tqdm(self.load_config.use_tqdm_on_load), bar_format=_BAR_FORMAT
        )
        walk = walk_windows(windows, reads=group.rank_in_group == 0, room=room, drop=drop, meet=meet)
        with shards, closing(walk):
            for window, after in zip(walk, [*files[1:], ""], strict=True):
                for stored in window.tensors:
                    if not should_skip_weight(stored.name, self.local_expert_ids):
                        yield prefix + stored.name, _map(window.file, stored)
                shards.update(window.file != after)


def _plan(files: Sequence[str]) -> tuple[list[ReadWindow], int, bool]:
    """Return the windows, the bytes of cache for them, and whether they leave the cache; all processes have what the first one decides.

    Raises UnknownLayout in all of them where it cannot.
    """
    group = get_world_group()
    answer: list[tuple[list[ReadWindow], int, bool] | str] = [""]
    if group.rank_in_group == 0:
        try:
            answer = [_decide(files)]
        except (OSError, ValueError, KeyError, StopIteration, UnknownLayout) as error:
            answer = [str(error) or type(error).__name__]
    if group.world_size > 1:
        torch.distributed.broadcast_object_list(answer, src=group.ranks[0], group=group.cpu_group)
    if isinstance(answer[0], str):
        raise UnknownLayout(answer[0])
    return answer[0]


def _decide(files: Sequence[str]) -> tuple[list[ReadWindow], int, bool]:
    room = read_room()
    if not (most := decide_window(room)):
        raise UnknownLayout(f"the page cache may have {max(room, 0) >> 20} MiB, which is too little to read ahead")
    windows = [window for file in files for window in split_into_windows(file, read_layout(file, _SIZES), most)]
    return windows, room, sum(window.size for window in windows) > room // 2


def _map(file: str, stored: StoredTensor) -> torch.Tensor:
    """Map a tensor from its file, privately: it leaves memory with the last who holds it."""
    kind = _TYPES[stored.kind]
    if not prod(stored.shape):
        return torch.empty(stored.shape, dtype=kind)
    skipped = stored.begin % mmap.ALLOCATIONGRANULARITY
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        mapping = mmap.mmap(descriptor, stored.end - stored.begin + skipped, access=mmap.ACCESS_COPY, offset=stored.begin - skipped)
    finally:
        os.close(descriptor)
    return torch.frombuffer(mapping, dtype=kind, count=prod(stored.shape), offset=skipped).view(stored.shape)


def take_over() -> None:
    """Be the loader for the load format `auto`."""
    register_model_loader("auto")(WindowedModelLoader)
