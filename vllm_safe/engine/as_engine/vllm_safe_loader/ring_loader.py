"""vLLM's default loader, with safetensors files read through a ring buffer in shared memory. vLLM does everything else of a load."""

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
from .shard_layout import ReadWindow, RingUnusable, StoredTensor, read_layout, split_into_windows
from .shared_ring import RingShape, SharedRing

_SHARDS = "Loading safetensors checkpoint shards"  # as vLLM prints it: launch/phases.py parses it
_LOG_INTERVAL = 2.0  # seconds between two lines about the bytes that have been read
_log = init_logger("vllm.vllm_safe_loader")
_NETWORK = frozenset({"nfs", "nfs4", "lustre", "cifs", "smb3", "ceph", "9p", "fuse.sshfs"})
# The dtypes of safetensors whose elements are whole bytes and that correspond to one dtype of torch.
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
    """What rank 0 sends to the other processes: where its ring is, and which windows will be in it."""

    pid: int
    descriptor: int
    shape: RingShape
    windows: list[ReadWindow]
    cache: int


class RingModelLoader(DefaultModelLoader):  # type: ignore[misc] # vLLM is not installed when types are checked
    """The default loader. If it cannot read through a ring, it logs the reason and reads as vLLM does."""

    def _get_weights_iterator(self, source: DefaultModelLoader.Source) -> Iterator[tuple[str, torch.Tensor]]:
        by_vllm: Iterator[tuple[str, torch.Tensor]] = super()._get_weights_iterator(source)  # a generator, which reads nothing yet
        try:
            walk, windows, capacity = _prepare_ring(self._files(source))
        except RingUnusable as reason:
            _log.info_once("vllm-safe: vLLM reads the checkpoint itself: %s", reason)
            return by_vllm
        _log.info_once(
            "vllm-safe: reading the checkpoint in order, in %d windows through a ring buffer of %d KiB", len(windows), capacity >> 10
        )
        return self._walk(source.prefix, walk, windows)

    def _files(self, source: DefaultModelLoader.Source) -> list[str]:
        """Return the files in vLLM's order. Raises RingUnusable if the options, the model or its files need vLLM's own loader."""
        config = self.load_config
        parallel = get_current_vllm_config_or_none()
        if config.load_format not in {"auto", "safetensors", "hf"} or config.safetensors_load_strategy not in {None, "lazy"}:
            raise RingUnusable("the load options require it")
        if config.model_loader_extra_config or self._encoder_only_lm_prefixes is not None or source.is_unused_weight is not None:
            raise RingUnusable("the load options require it")
        if parallel is None or parallel.parallel_config.nnodes > 1 or parallel.parallel_config.data_parallel_size > 1:
            raise RingUnusable("the model spans several machines, or uses data parallelism")
        if parallel.speculative_config is not None:
            raise RingUnusable("speculative decoding may load a second model")
        found = self._prepare_weights(
            source.model_or_path, source.subfolder, source.revision, source.fall_back_to_pt, source.allow_patterns_overrides
        )
        files: list[str] = sorted(found[1], key=_natural_sort_key)
        if not found[2]:
            raise RingUnusable("the checkpoint is not in safetensors files")
        if (kind := _get_fs_type(files)) in _NETWORK:
            raise RingUnusable(f"the checkpoint is on a network file system ({kind})")
        return files

    def _walk(self, prefix: str, walk: RingWalk, windows: Sequence[ReadWindow]) -> Generator[tuple[str, torch.Tensor]]:
        order = {file: index for index, file in enumerate(dict.fromkeys(window.file for window in windows))}
        shown = enable_tqdm(self.load_config.use_tqdm_on_load)
        taken = walk.take(lambda name: not should_skip_weight(name, self.local_expert_ids))
        with tqdm(desc=_SHARDS, total=len(order), disable=not shown, bar_format=_BAR_FORMAT) as shards, closing(taken):
            count = _ByteCount(windows, shown=get_world_group().rank_in_group == 0)
            for index, stored, view in taken:
                shards.update(order[windows[index].file] - shards.n)
                count.log(index)
                yield prefix + stored.name, _tensor(stored, view)
            shards.update(len(order) - shards.n)
            count.log(len(windows))


class _ByteCount:
    """Logs how many bytes have been taken, in a line that launch/phases.py parses."""

    def __init__(self, windows: Sequence[ReadWindow], *, shown: bool) -> None:
        self._before = list(accumulate((window.size for window in windows), initial=0))  # bytes, by window
        self._shown = shown
        self._logged, self._logged_at = -1, -_LOG_INTERVAL

    def log(self, index: int) -> None:
        """Log how many bytes precede a window: every few seconds, and at the end."""
        now = time.monotonic()
        last = index == len(self._before) - 1
        if self._shown and self._before[index] != self._logged and (last or now - self._logged_at >= _LOG_INTERVAL):
            self._logged, self._logged_at = self._before[index], now
            _log.info("vllm-safe: %d of %d bytes of the checkpoint have been read", self._logged, self._before[-1])


def _prepare_ring(files: Sequence[str]) -> tuple[RingWalk, list[ReadWindow], int]:
    """Return this process's walk through the windows, the windows, and the size of the ring in bytes. Rank 0 decides for all processes.

    Raises RingUnusable in all processes if one of them cannot use the ring.
    """
    group = get_world_group()
    own_ring: SharedRing | None = None
    sent: list[_Offer | str] = [""]
    if group.rank_in_group == 0:
        try:
            windows, capacity, cache = _decide(files)
            own_ring = SharedRing.create(RingShape(group.world_size, len(windows), capacity))
            sent = [_Offer(os.getpid(), own_ring.descriptor, own_ring.shape, windows, cache)]
        except (OSError, ValueError, KeyError, StopIteration, RingUnusable) as error:
            sent = [str(error) or type(error).__name__]
    if group.world_size > 1:
        torch.distributed.broadcast_object_list(sent, src=group.ranks[0], group=group.cpu_group)
    if isinstance(offer := sent[0], str):
        raise RingUnusable(offer)
    walk, problem = _open_walk(offer, own_ring)
    problems: list[str] = [problem] * group.world_size
    if group.world_size > 1:
        torch.distributed.all_gather_object(problems, problem, group=group.cpu_group)
    if walk is None or any(problems):
        raise RingUnusable(next(filter(None, problems)))
    if own_ring:
        RingReader(own_ring, walk.places, offer.cache).start()
    return walk, offer.windows, offer.shape.capacity


def _decide(files: Sequence[str]) -> tuple[list[ReadWindow], int, int]:
    if mmap.PAGESIZE != PAGE:
        raise RingUnusable(f"this kernel uses pages of {mmap.PAGESIZE >> 10} KiB")
    room = read_room()
    layouts = {file: read_layout(file, _SIZES) for file in files}
    capacity = decide_capacity(room, [tensor for layout in layouts.values() for tensor in layout])
    if not capacity:
        raise RingUnusable(f"{max(room, 0) >> 20} MiB of available memory is too little for a ring buffer")
    most = decide_window(capacity)
    windows = [window for file, layout in layouts.items() for window in split_into_windows(file, layout, most)]
    return windows, capacity, decide_cache(room, capacity)


def _open_walk(offer: _Offer, own_ring: SharedRing | None) -> tuple[RingWalk | None, str]:
    """Return this process's walk and '', or None and the reason why it cannot use the ring."""
    try:
        ring = own_ring or SharedRing.open(offer.pid, offer.descriptor, offer.shape)
        return RingWalk(ring, place_windows(offer.windows, offer.shape.capacity), get_world_group().rank_in_group), ""
    except (OSError, ValueError) as error:
        return None, f"the workers cannot share memory: {error}"


def _tensor(stored: StoredTensor, view: memoryview) -> torch.Tensor:
    kind = _TYPES[stored.kind]
    return (torch.frombuffer(view, dtype=kind) if len(view) else torch.empty(0, dtype=kind)).view(stored.shape)


def take_over() -> None:
    """Register the loader for the load format `auto`."""
    register_model_loader("auto")(RingModelLoader)
