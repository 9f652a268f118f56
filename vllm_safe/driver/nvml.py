"""`python3 -I FILE`: what NVML, NVIDIA's own library, says of the driver and its cards, as one line of JSON. Standard library only.

A process of its own, because a card that has hung can hold up a call for ever, and the library stays in who has loaded it.
"""

import ctypes
import json
import sys
from contextlib import suppress

LIBRARY = "libnvidia-ml.so.1"
_LONGEST = 96  # bytes: NVML_DEVICE_NAME_V2_BUFFER_SIZE; a version has fewer


def main() -> None:
    """Print it. `error` is what nvmlInit returns, and null where there is no such library; a call that an old one lacks is left out."""
    answer: dict[str, object] = {"error": None}
    with suppress(OSError, AttributeError):
        nvml = ctypes.CDLL(LIBRARY)
        answer["error"] = nvml.nvmlInit_v2()
        answer["library"] = _text(nvml.nvmlSystemGetNVMLVersion).partition(".")[2]  # 13.580.159.04; it needs no driver
        if not answer["error"]:
            answer["driver"] = _text(nvml.nvmlSystemGetDriverVersion)
            answer["cuda"] = _number(nvml.nvmlSystemGetCudaDriverVersion_v2)  # libcuda.so.1's: 13000 is 13.0, 0 that there is none
            answer["cards"] = [_card(nvml, index) for index in range(_number(nvml.nvmlDeviceGetCount_v2))]
    sys.stdout.write(json.dumps(answer) + "\n")


def _card(nvml: ctypes.CDLL, index: int) -> dict[str, object]:
    """The name and the compute capability of one card; (0, 0) where it does not answer."""
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
