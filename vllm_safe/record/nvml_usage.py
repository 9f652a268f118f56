"""GPU usage, draw, heat and links through NVML, the driver's own library.

It is only imported where there is a driver: ctypes and NVML cost 10 MB. A hung GPU can block a call for ever. Hence a separate
thread reads the usage, and the recorder takes its last reading.
"""

from __future__ import annotations

import _thread
import ctypes
import time
from typing import Any

from vllm_safe.contract.recorded_run import Gpu

LIBRARY = "libnvidia-ml.so.1"
_STALE = 5.0  # seconds after which a reading is outdated
_LOST = 15  # NVML_ERROR_GPU_IS_LOST: it has fallen off the bus
_MOST_LANES = 32  # PCI Express Base Specification, Link Status register
# nvml.h, nvmlClocksEventReason*: bits of why the clocks are lower than they could be. The hardware's own bit is also set with the others.
_HEAT, _CAP, _BRAKE = 0x20 | 0x40, 0x4, 0x8 | 0x80


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
        self.lost: frozenset[int] = frozenset()  # the numbers of the GPUs that NVML reports as lost

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
        """Read all GPUs; one that does not answer has zeros."""
        number = ctypes.c_uint()
        if self._nvml.nvmlDeviceGetCount_v2(ctypes.byref(number)):
            return ()
        return tuple(self._card(index) for index in range(number.value))

    def _card(self, index: int) -> Gpu:
        device, memory, busy = ctypes.c_void_p(), _Memory(version=_MEMORY_V2), _Utilization()
        code = self._nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device))
        code = code or self._nvml.nvmlDeviceGetMemoryInfo_v2(device, ctypes.byref(memory))
        if code == _LOST:
            self.lost |= {index}
        if code:
            return Gpu(0, 0, 0.0)
        if self._nvml.nvmlDeviceGetUtilizationRates(device, ctypes.byref(busy)):
            busy = _Utilization()
        power = self._figure("PowerUsage", device)
        reasons = self._figure("CurrentClocksEventReasons", device)
        if reasons is None:  # its name before driver 535
            reasons = self._figure("CurrentClocksThrottleReasons", device)
        lanes = self._figure("CurrPcieLinkWidth", device)
        return Gpu(
            memory.used,
            memory.total,
            busy.gpu / 100,
            power=None if power is None else power / 1000,
            temperature=self._figure("Temperature", device, 0),  # NVML_TEMPERATURE_GPU
            heat=None if reasons is None else float(bool(reasons & _HEAT)),
            capped=None if reasons is None else float(bool(reasons & _CAP)),
            braked=None if reasons is None else float(bool(reasons & _BRAKE and not reasons & _HEAT)),
            lanes=lanes if lanes is not None and lanes <= _MOST_LANES else None,
            generation=self._figure("CurrPcieLinkGeneration", device),
        )

    def _figure(self, name: str, device: ctypes.c_void_p, *before: int) -> int | None:
        """Return one figure; None if the GPU does not have it, or the library no such function."""
        value = ctypes.c_ulonglong()  # little-endian: functions that write 32 bits leave the others 0
        try:
            code = getattr(self._nvml, f"nvmlDeviceGet{name}")(device, *before, ctypes.byref(value))
        except AttributeError:
            return None
        return None if code else value.value
