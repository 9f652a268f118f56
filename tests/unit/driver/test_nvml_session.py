"""Errors of NVML are one exception, with a way out."""

from __future__ import annotations

import pynvml
import pytest

from vllm_safe.driver.nvml_session import NvmlFailure, ask_nvml_for, ask_nvml_or


def refuse(code: int) -> None:
    raise pynvml.NVMLError(code)


def test_an_answer_is_handed_on() -> None:
    assert ask_nvml_for(max, 1, 2) == 2
    assert ask_nvml_or(0, max, 1, 2) == 2


@pytest.mark.parametrize(
    ("code", "words", "hint"),
    [
        (pynvml.NVML_ERROR_NO_PERMISSION, "refuse: Insufficient Permissions (NVML error 4)", "Run it as root."),
        (pynvml.NVML_ERROR_GPU_IS_LOST, "(NVML error 15)", "power the machine off and on"),
        (pynvml.NVML_ERROR_UNKNOWN, "(NVML error 999)", "dmesg | grep NVRM"),
    ],
)
def test_each_error_has_its_code_and_a_way_out(code: int, words: str, hint: str) -> None:
    with pytest.raises(NvmlFailure) as caught:
        ask_nvml_for(refuse, code)
    assert (caught.value.code, words in caught.value.message, hint in caught.value.hint) == (code, True, True)
    assert ask_nvml_or("nothing", refuse, code) == "nothing"
