"""NVIDIA cards through NVML, the driver's own library. Only imported where there is a driver: ctypes and NVML cost 10 MB.

A card that has hung can hold up a call for ever, so that a thread of its own asks, and the recorder takes what it last heard.
"""

from __future__ import annotations

import _thread
import ctypes
import time
from typing import Any

from vllm_safe.contract.recorded_run import Gpu

LIBRARY = "libnvidia-ml.so.1"
_STALE = 5.0  # seconds after which what was heard says nothing of now


class _Memory(ctypes.Structure):  # nvml.h, nvmlMemory_v2_t: the first one counted what the driver keeps of a card as used
    _fields_ = (
        ("version", ctypes.c_uint),
        ("total", ctypes.c_ulonglong),
        ("reserved", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


_MEMORY_V2 = ctypes.sizeof(_Memory) | 2 << 24  # NVML_STRUCT_VERSION(Memory, 2)


class _Utilization(ctypes.Structure):  # nvmlUtilization_t
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class NvmlCards:
    """All cards of the machine. OSError if there is no NVML, or it does not work."""

    def __init__(self, library: Any = None) -> None:  # noqa: ANN401 - any shared library
        self._nvml = library or ctypes.CDLL(LIBRARY)
        if code := self._nvml.nvmlInit_v2():
            raise OSError(f"NVML does not start: error {code}")
        self._heard: tuple[Gpu, ...] = ()
        self._at = float("-inf")
        self._asking = False

    def ask(self, now: float) -> tuple[Gpu, ...]:
        """What was heard since the last time, () if nothing; and have them asked for the next time."""
        if not self._asking:
            self._asking = True
            _thread.start_new_thread(self._ask, ())
        return self._heard if now - self._at < _STALE else ()

    def _ask(self) -> None:
        try:
            self._heard, self._at = self.read(), time.monotonic()
        finally:
            self._asking = False

    def read(self) -> tuple[Gpu, ...]:
        """Every card in turn; one that does not answer has zeros."""
        number = ctypes.c_uint()
        if self._nvml.nvmlDeviceGetCount_v2(ctypes.byref(number)):
            return ()
        return tuple(self._card(index) for index in range(number.value))

    def _card(self, index: int) -> Gpu:
        device, memory, busy = ctypes.c_void_p(), _Memory(version=_MEMORY_V2), _Utilization()
        if self._nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)):
            return Gpu(0, 0, 0.0)
        if self._nvml.nvmlDeviceGetMemoryInfo_v2(device, ctypes.byref(memory)):
            memory = _Memory()
        if self._nvml.nvmlDeviceGetUtilizationRates(device, ctypes.byref(busy)):
            busy = _Utilization()
        return Gpu(memory.used, memory.total, busy.gpu / 100)
