"""GPU usage through NVML, the driver's own library. It is only imported where there is a driver: ctypes and NVML cost 10 MB.

A hung GPU can block a call for ever. Hence a separate thread reads the usage, and the recorder takes its last reading.
"""

from __future__ import annotations

import _thread
import ctypes
import time
from typing import Any

from vllm_safe.contract.recorded_run import Gpu

LIBRARY = "libnvidia-ml.so.1"
_STALE = 5.0  # seconds after which a reading is outdated


class _Memory(ctypes.Structure):  # nvml.h, nvmlMemory_v2_t: the first version counted the driver's reserved memory as used
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
    """All GPUs of the machine. Raises OSError if NVML does not exist or cannot be initialized."""

    def __init__(self, library: Any = None) -> None:  # noqa: ANN401 - any shared library
        self._nvml = library or ctypes.CDLL(LIBRARY)
        if code := self._nvml.nvmlInit_v2():
            raise OSError(f"NVML cannot be initialized: error {code}")
        self._last: tuple[Gpu, ...] = ()
        self._last_time = float("-inf")
        self._asking = False

    def ask(self, now: float) -> tuple[Gpu, ...]:
        """Return the last reading, () if it is outdated, and start the next one."""
        if not self._asking:
            self._asking = True
            _thread.start_new_thread(self._ask, ())
        return self._last if now - self._last_time < _STALE else ()

    def _ask(self) -> None:
        try:
            self._last, self._last_time = self.read(), time.monotonic()
        finally:
            self._asking = False

    def read(self) -> tuple[Gpu, ...]:
        """Read the usage of all GPUs; a GPU that does not answer has zeros."""
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
