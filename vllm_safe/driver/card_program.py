"""The answers of NVML about the driver and its cards, printed as a line of JSON.

It is the program of a separate process (__main__.py), since a hung card can block a call for ever, and a process cannot unload the library.
Its keys are the fields of the classes in card_facts.py. What a card, a driver or a user has no answer for is left out.
"""

from __future__ import annotations

import json
import sys
from itertools import combinations
from typing import Any

import pynvml

from vllm_safe.driver.nvml_session import NvmlFailure, ask_nvml_for, ask_nvml_or, nvml_cards, open_nvml

_READ, _NVLINK = 0, 2  # nvmlGpuP2PCapsIndex_t; pynvml's own NVML_P2P_CAPS_INDEX_READ is a tuple by mistake
_MOST_PAIRS = 1 << 8  # of 23 cards; more would take longer than the answer is worth


def main() -> None:
    """Print the answers. `error` is the return value of nvmlInit, or null without the library."""
    sys.stdout.write(json.dumps(ask_driver()) + "\n")


def ask_driver() -> dict[str, Any]:
    """Return the answers."""
    answer: dict[str, Any] = {}
    try:
        with open_nvml():
            answer |= {"error": 0, "driver": ask_nvml_for(pynvml.nvmlSystemGetDriverVersion)}
            answer["cuda"] = ask_nvml_or(0, pynvml.nvmlSystemGetCudaDriverVersion_v2)  # from libcuda.so.1: 13000 is 13.0
            cards = list(nvml_cards())
            answer["cards"] = [ask_card(handle) for _, handle in cards]
            both = list(combinations([(index, handle) for index, handle in cards if handle is not None], 2))
            answer["pairs"] = [_pair(*first, *second) for first, second in both[:_MOST_PAIRS]]
    except NvmlFailure as failure:
        answer["error"] = None if failure.code == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND else failure.code
    answer["library"] = ask_nvml_or("", pynvml.nvmlSystemGetNVMLVersion).partition(".")[2]  # such as 13.580.159.04; it needs no driver
    return answer


def ask_card(handle: Any) -> dict[str, Any]:  # noqa: ANN401 - pynvml has no types
    """Return the facts about one card; one that does not respond has a capability of (0, 0)."""
    if handle is None:
        return {"name": "", "capability": (0, 0)}
    found = {
        "name": ask_nvml_or("", pynvml.nvmlDeviceGetName, handle),
        "capability": ask_nvml_or((0, 0), pynvml.nvmlDeviceGetCudaComputeCapability, handle),
        "uuid": ask_nvml_or(None, pynvml.nvmlDeviceGetUUID, handle),
        "pci": _address(handle),
        **_memory(handle),
        "processes": _processes(handle),
        "persistence": _switch(pynvml.nvmlDeviceGetPersistenceMode, handle),
        "display": _switch(pynvml.nvmlDeviceGetDisplayActive, handle),
        **_ecc(handle),
        **_power_and_heat(handle),
    }
    return {key: value for key, value in found.items() if value is not None}


def _address(handle: Any) -> str:  # noqa: ANN401 - likewise
    """Return the PCI address as the kernel writes it: its domain has four digits, in NVML eight."""
    info = ask_nvml_or(None, pynvml.nvmlDeviceGetPciInfo, handle)
    return f"{info.domain:04x}:{info.bus:02x}:{info.device:02x}.0" if info else ""


def _switch(call: Any, handle: Any) -> bool | None:  # noqa: ANN401 - likewise
    value = ask_nvml_or(None, call, handle)
    return None if value is None else bool(value)


def _memory(handle: Any) -> dict[str, Any]:  # noqa: ANN401 - likewise
    # The first version counted the driver's reserved memory as used; drivers before 510 have only that.
    memory = ask_nvml_or(None, pynvml.nvmlDeviceGetMemoryInfo, handle, pynvml.nvmlMemory_v2)
    memory = memory or ask_nvml_or(None, pynvml.nvmlDeviceGetMemoryInfo, handle)
    window = ask_nvml_or(None, pynvml.nvmlDeviceGetBAR1MemoryInfo, handle)
    sizes = {"memory": memory.total, "used": memory.used, "reserved": getattr(memory, "reserved", 0)} if memory else {}
    return sizes | ({"bar1": window.bar1Total} if window else {})


def _processes(handle: Any) -> list[tuple[int, int]]:  # noqa: ANN401 - likewise
    """Return the processes with their bytes; one that computes and draws is in both lists."""
    # By the names with a version: where the library lacks the call, the others raise an exception that is no NVMLError.
    lists = (pynvml.nvmlDeviceGetComputeRunningProcesses_v3, pynvml.nvmlDeviceGetGraphicsRunningProcesses_v3)
    return sorted({each.pid: each.usedGpuMemory or 0 for call in lists for each in ask_nvml_or((), call, handle)}.items())


def _ecc(handle: Any) -> dict[str, Any]:  # noqa: ANN401 - likewise
    """Return what is known about errors of the memory: since the driver was loaded, and pages or rows that were replaced for good."""
    modes = ask_nvml_or(None, pynvml.nvmlDeviceGetEccMode, handle)
    volatile = (pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC)
    causes = (pynvml.NVML_PAGE_RETIREMENT_CAUSE_MULTIPLE_SINGLE_BIT_ECC_ERRORS, pynvml.NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR)
    pages = sum(len(ask_nvml_or((), pynvml.nvmlDeviceGetRetiredPages, handle, cause)) for cause in causes)
    corrected, uncorrected, pending, exhausted = ask_nvml_or((0, 0, 0, 0), pynvml.nvmlDeviceGetRemappedRows, handle)
    return {
        "ecc": None if modes is None else bool(modes[0]),
        "ecc_after_reboot": None if modes is None else bool(modes[1]),
        "uncorrected": ask_nvml_or(0, pynvml.nvmlDeviceGetTotalEccErrors, handle, *volatile),
        "replaced": pages + corrected + uncorrected,
        "replacement_pending": bool(pending or ask_nvml_or(0, pynvml.nvmlDeviceGetRetiredPagesPendingStatus, handle)),
        "spares_exhausted": bool(exhausted),
    }


def _power_and_heat(handle: Any) -> dict[str, Any]:  # noqa: ANN401 - likewise
    slowdown = pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
    reasons = ask_nvml_or(None, pynvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
    if reasons is None:  # a driver before 535 knows them by their older name
        reasons = ask_nvml_or(0, pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
    least, most = ask_nvml_or((None, None), pynvml.nvmlDeviceGetPowerManagementLimitConstraints, handle)
    return {
        "power_limit": ask_nvml_or(None, pynvml.nvmlDeviceGetPowerManagementLimit, handle),
        "power_default": ask_nvml_or(None, pynvml.nvmlDeviceGetPowerManagementDefaultLimit, handle),
        "power_least": least,
        "power_most": most,
        "temperature": ask_nvml_or(None, pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
        "slowdown_temperature": ask_nvml_or(None, pynvml.nvmlDeviceGetTemperatureThreshold, handle, slowdown),
        "slowed_by": reasons,
    }


def _pair(first: int, one: Any, second: int, other: Any) -> dict[str, Any]:  # noqa: ANN401 - likewise
    return {
        "first": first,
        "second": second,
        "access": ask_nvml_or(None, pynvml.nvmlDeviceGetP2PStatus, one, other, _READ),
        "nvlink": ask_nvml_or(None, pynvml.nvmlDeviceGetP2PStatus, one, other, _NVLINK) == pynvml.NVML_P2P_STATUS_OK,
    }
