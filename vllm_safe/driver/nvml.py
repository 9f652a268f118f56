"""Program `python3 -I FILE`: it prints the answers of NVML about the driver and its cards as a line of JSON. Standard library only.

It is a separate process, since a hung card can block a call for ever, and a process cannot unload the library.
"""

import ctypes
import json
import sys
from contextlib import suppress

LIBRARY = "libnvidia-ml.so.1"
_LONGEST = 96  # bytes: NVML_DEVICE_NAME_V2_BUFFER_SIZE; a version is shorter


def main() -> None:
    """Print the answers.

    `error` is the return value of nvmlInit, or null without the library. Calls that an old library lacks are omitted.
    """
    answer: dict[str, object] = {"error": None}
    with suppress(OSError, AttributeError):
        nvml = ctypes.CDLL(LIBRARY)
        answer["error"] = nvml.nvmlInit_v2()
        answer["library"] = _text(nvml.nvmlSystemGetNVMLVersion).partition(".")[2]  # such as 13.580.159.04; this call needs no driver
        if not answer["error"]:
            answer["driver"] = _text(nvml.nvmlSystemGetDriverVersion)
            answer["cuda"] = _number(nvml.nvmlSystemGetCudaDriverVersion_v2)  # from libcuda.so.1: 13000 is 13.0, 0 means no libcuda
            answer["cards"] = [_card(nvml, index) for index in range(_number(nvml.nvmlDeviceGetCount_v2))]
    sys.stdout.write(json.dumps(answer) + "\n")


def _card(nvml: ctypes.CDLL, index: int) -> dict[str, object]:
    """Return the name and the compute capability of one card; (0, 0) if it does not respond."""
    device, major, minor = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int()
    if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)):
        return {"name": "", "capability": (0, 0)}
    if nvml.nvmlDeviceGetCudaComputeCapability(device, ctypes.byref(major), ctypes.byref(minor)):
        major, minor = ctypes.c_int(), ctypes.c_int()
    return {"name": _text(nvml.nvmlDeviceGetName, device), "capability": (major.value, minor.value)}


def _text(call: "ctypes._NamedFuncPointer", *before: object) -> str:
    buffer = ctypes.create_string_buffer(_LONGEST)
    return "" if call(*before, buffer, _LONGEST) else buffer.value.decode(errors="replace")


def _number(call: "ctypes._NamedFuncPointer") -> int:
    number = ctypes.c_int()
    return 0 if call(ctypes.byref(number)) else number.value


if __name__ == "__main__":
    main()
