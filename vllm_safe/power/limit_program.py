"""The change of the power limit of a GPU, with its result printed as a line of JSON.

It is the program of a separate process (__main__.py), since a hung card can block a call for ever.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import pynvml

from vllm_safe.driver.nvml_session import NvmlFailure, ask_nvml_for, ask_nvml_or, open_nvml

# A GPU that is not there any more, or whose driver is not loaded, has its default limit when it is back.
_GONE = {
    *(pynvml.NVML_ERROR_NOT_FOUND, pynvml.NVML_ERROR_GPU_IS_LOST),
    *(pynvml.NVML_ERROR_DRIVER_NOT_LOADED, pynvml.NVML_ERROR_LIBRARY_NOT_FOUND),
}


def main() -> None:
    """Take a UUID, a limit in milliwatts, and whether persistence mode is to be on afterwards (1 or 0)."""
    uuid, limit, persistent = sys.argv[1:]
    sys.stdout.write(json.dumps(change_limit(uuid, int(limit), persistent=persistent == "1")) + "\n")


def change_limit(uuid: str, limit: int, *, persistent: bool) -> dict[str, Any]:
    """Set the limit, and return that of the GPU afterwards, or the problem. Keys are the fields of LimitChange."""
    try:
        with open_nvml():
            handle = ask_nvml_for(pynvml.nvmlDeviceGetHandleByUUID, uuid)
            if persistent:  # if the driver refuses the mode, the limit holds while a process uses the GPU
                ask_nvml_or(None, pynvml.nvmlDeviceSetPersistenceMode, handle, 1)
            if ask_nvml_for(pynvml.nvmlDeviceGetPowerManagementLimit, handle) != limit:
                ask_nvml_for(pynvml.nvmlDeviceSetPowerManagementLimit, handle, limit)
            now = ask_nvml_for(pynvml.nvmlDeviceGetPowerManagementLimit, handle)
            if not persistent:
                ask_nvml_or(None, pynvml.nvmlDeviceSetPersistenceMode, handle, 0)
            return {"limit": now}
    except NvmlFailure as failure:
        return {"problem": failure.message, "hint": failure.hint, "gone": failure.code in _GONE}
