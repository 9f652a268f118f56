"""A session with NVML, the library of NVIDIA's driver, through NVIDIA's own binding (nvidia-ml-py).

A call can block for ever on a hung card. Whoever must go on in that case calls it in a process of its own, as card_program.py does.
What is resident has ctypes instead (record/nvml_usage.py): this binding takes 6 MB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pynvml

from vllm_safe.common.errors import Failure

Answer = TypeVar("Answer")
# By the values of nvmlReturn_t (nvml.h) for which a person can do something.
_HINTS = {
    pynvml.NVML_ERROR_NO_PERMISSION: "Run it as root.",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "vllm-safe check shows what is wrong with the driver.",
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "Install NVIDIA's driver with its libraries: vllm-safe check shows how.",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "The driver was upgraded while it was loaded: reboot.",
    pynvml.NVML_ERROR_GPU_IS_LOST: "The GPU has fallen off the bus: power the machine off and on.",
    pynvml.NVML_ERROR_RESET_REQUIRED: "Reset the GPU (nvidia-smi -r while nothing uses it), or reboot.",
}


class NvmlFailure(Failure):
    """A call that NVML refused. `code`: its nvmlReturn_t."""

    def __init__(self, call: str, error: pynvml.NVMLError) -> None:
        self.code = int(error.value)
        super().__init__(f"{call}: {error} (NVML error {self.code})", hint=_HINTS.get(self.code, "dmesg | grep NVRM may show the reason."))


def ask_nvml_for(call: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401 - each call has an answer of its own type
    """Call a function of pynvml. Raises NvmlFailure instead of pynvml's 40 exceptions."""
    try:
        return call(*arguments)
    except pynvml.NVMLError as error:
        raise NvmlFailure(call.__name__, error) from error


def ask_nvml_or(otherwise: Answer, call: Callable[..., Any], *arguments: object) -> Any | Answer:  # noqa: ANN401 - likewise
    """Call a function of pynvml, and return `otherwise` if this card, this driver or this user has no answer."""
    try:
        return ask_nvml_for(call, *arguments)
    except NvmlFailure:
        return otherwise


@contextmanager
def open_nvml() -> Iterator[None]:
    """Load and initialise the library, and leave it at the end. Raises NvmlFailure where there is no driver or none that works."""
    ask_nvml_for(pynvml.nvmlInit)
    try:
        yield
    finally:
        ask_nvml_or(None, pynvml.nvmlShutdown)


def nvml_cards() -> Iterator[tuple[int, Any]]:
    """Yield the number and the handle of each card; None instead of the handle of a card that does not respond."""
    for index in range(ask_nvml_for(pynvml.nvmlDeviceGetCount)):
        yield index, ask_nvml_or(None, pynvml.nvmlDeviceGetHandleByIndex, index)
