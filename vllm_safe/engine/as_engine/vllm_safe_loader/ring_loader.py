"""vLLM's default loader, whose safetensors files are read through a ring of shared memory. Everything else of a load is vLLM's."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import accumulate
from types import MappingProxyType
from typing import NamedTuple

import torch
from tqdm import tqdm
from vllm.config import get_current_vllm_config_or_none
from vllm.distributed.parallel_state import get_world_group
from vllm.logger import init_logger
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.ep_weight_filter import should_skip_weight
from vllm.model_executor.model_loader.weight_utils import _BAR_FORMAT, _get_fs_type, _natural_sort_key, enable_tqdm

from .memory_room import read_room
from .ring_layout import PAGE, decide_cache, decide_capacity, decide_window, place_windows
from .ring_reader import RingReader
from .ring_walk import RingWalk
from .shard_layout import ReadWindow, StoredTensor, UnknownLayout, read_layout, split_into_windows
from .shared_ring import RingShape, SharedRing

_SHARDS = "Loading safetensors checkpoint shards"  # as vLLM prints it: launch/load_progress.py reads it
_OFTEN = 2.0  # seconds between two lines that say how much has been read
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


class _Offer(NamedTuple):
    """What the first process says to the others: where its ring is, and what will be in it."""

    pid: int
    descriptor: int
    shape: RingShape
    windows: list[ReadWindow]
    cache: int


class RingModelLoader(DefaultModelLoader):  # type: ignore[misc] # vLLM is not there when types are checked
    """The default loader. Where it cannot read through a ring, it says why and reads as vLLM does."""

    def _get_weights_iterator(self, source: DefaultModelLoader.Source) -> Iterator[tuple[str, torch.Tensor]]:
        theirs: Iterator[tuple[str, torch.Tensor]] = super()._get_weights_iterator(source)  # nothing is read before it is iterated
        try:
            walk, windows, capacity = _share(self._files(source))
        except UnknownLayout as reason:
            _log.info_once("vllm-safe: vLLM reads the checkpoint itself: %s", reason)
            return theirs
        _log.info_once("vllm-safe: the checkpoint is read in order, in %d windows through %d KiB of memory", len(windows), capacity >> 10)
        return self._walk(source.prefix, walk, windows)

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

    def _walk(self, prefix: str, walk: RingWalk, windows: Sequence[ReadWindow]) -> Generator[tuple[str, torch.Tensor]]:
        order = {file: index for index, file in enumerate(dict.fromkeys(window.file for window in windows))}
        shown = enable_tqdm(self.load_config.use_tqdm_on_load)
        taken = walk.take(lambda name: not should_skip_weight(name, self.local_expert_ids))
        with tqdm(desc=_SHARDS, total=len(order), disable=not shown, bar_format=_BAR_FORMAT) as shards, closing(taken):
            count = _Count(windows, shown=get_world_group().rank_in_group == 0)
            for index, stored, view in taken:
                shards.update(order[windows[index].file] - shards.n)
                count.say(index)
                yield prefix + stored.name, _tensor(stored, view)
            shards.update(len(order) - shards.n)
            count.say(len(windows))


class _Count:
    """Says how much has been taken, in words that launch/phases.py reads."""

    def __init__(self, windows: Sequence[ReadWindow], *, shown: bool) -> None:
        self._before = list(accumulate((window.size for window in windows), initial=0))  # bytes, by window
        self._shown = shown
        self._said, self._when = -1, -_OFTEN

    def say(self, index: int) -> None:
        """Say what is before a window, now and then, and at the end."""
        now = time.monotonic()
        last = index == len(self._before) - 1
        if self._shown and self._before[index] != self._said and (last or now - self._when >= _OFTEN):
            self._said, self._when = self._before[index], now
            _log.info("vllm-safe: %d of %d bytes of the checkpoint have been read", self._said, self._before[-1])


def _share(files: Sequence[str]) -> tuple[RingWalk, list[ReadWindow], int]:
    """Return this process's walk through the files, the windows, and the bytes of the ring; all processes have what the first one decides.

    Raises UnknownLayout in all of them where it cannot.
    """
    group = get_world_group()
    made: SharedRing | None = None
    answer: list[_Offer | str] = [""]
    if group.rank_in_group == 0:
        try:
            windows, capacity, cache = _decide(files)
            made = SharedRing.create(RingShape(group.world_size, len(windows), capacity))
            answer = [_Offer(os.getpid(), made.descriptor, made.shape, windows, cache)]
        except (OSError, ValueError, KeyError, StopIteration, UnknownLayout) as error:
            answer = [str(error) or type(error).__name__]
    if group.world_size > 1:
        torch.distributed.broadcast_object_list(answer, src=group.ranks[0], group=group.cpu_group)
    if isinstance(offer := answer[0], str):
        raise UnknownLayout(offer)
    walk, why = _enter(offer, made)
    whys: list[str] = [why] * group.world_size
    if group.world_size > 1:
        torch.distributed.all_gather_object(whys, why, group=group.cpu_group)
    if walk is None or any(whys):
        raise UnknownLayout(next(filter(None, whys)))
    if made:
        RingReader(made, walk.places, offer.cache).start()
    return walk, offer.windows, offer.shape.capacity


def _decide(files: Sequence[str]) -> tuple[list[ReadWindow], int, int]:
    if mmap.PAGESIZE != PAGE:
        raise UnknownLayout(f"this kernel has pages of {mmap.PAGESIZE >> 10} KiB")
    room = read_room()
    layouts = {file: read_layout(file, _SIZES) for file in files}
    capacity = decide_capacity(room, [tensor for layout in layouts.values() for tensor in layout])
    if not capacity:
        raise UnknownLayout(f"{max(room, 0) >> 20} MiB of memory are too little to read ahead")
    most = decide_window(capacity)
    windows = [window for file, layout in layouts.items() for window in split_into_windows(file, layout, most)]
    return windows, capacity, decide_cache(room, capacity)


def _enter(offer: _Offer, made: SharedRing | None) -> tuple[RingWalk | None, str]:
    """Return this process's walk through the ring, or why it cannot have one."""
    try:
        ring = made or SharedRing.open(offer.pid, offer.descriptor, offer.shape)
        return RingWalk(ring, place_windows(offer.windows, offer.shape.capacity), get_world_group().rank_in_group), ""
    except (OSError, ValueError) as error:
        return None, f"its workers cannot share memory: {error}"


def _tensor(stored: StoredTensor, view: memoryview) -> torch.Tensor:
    kind = _TYPES[stored.kind]
    return (torch.frombuffer(view, dtype=kind) if len(view) else torch.empty(0, dtype=kind)).view(stored.shape)


def take_over() -> None:
    """Be the loader for the load format `auto`."""
    register_model_loader("auto")(RingModelLoader)
