"""Tests of reading the NVIDIA driver: files of real machines, and a library that answers, fails, hangs and crashes."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from tests.builders.trees import write_tree
from vllm_safe.driver import driver_facts
from vllm_safe.driver.card_facts import NvmlCard, PciCard
from vllm_safe.driver.driver_facts import Driver, Nvml, ask_nvml, read_driver

PROPRIETARY = """\
NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.261.03  Tue Jul  1 12:34:56 UTC 2025
GCC version:  gcc version 12.2.0 (Debian 12.2.0-14+deb12u1)
"""
OPEN = """\
NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build  (nixbld@)
GCC version:  gcc version 15.3.0 (GCC)
"""  # from the machine with H200 cards, like NVML's answers for one card below
KERNEL = "6.12.48+deb13-amd64"


def add_card(root: Path, address: str, bound: str = "", vendor: str = "0x10de", kind: str = "0x030000") -> None:
    device = root / "sys/bus/pci/devices" / address
    write_tree(device, {"vendor": f"{vendor}\n", "class": f"{kind}\n"})
    if bound:
        (device / "driver").symlink_to(f"../../../bus/pci/drivers/{bound}")


@pytest.fixture(autouse=True)
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_facts, "ask_nvml", lambda root: Nvml())  # noqa: ARG005 - its own name


def test_a_machine_without_anything(tmp_path: Path) -> None:
    found = read_driver(tmp_path)
    assert found == Driver()
    assert not found.answers
    assert not found.installed


def test_which_module_is_loaded_and_what_beside_it(tmp_path: Path) -> None:
    found = read_driver(
        write_tree(tmp_path, {"proc/driver/nvidia/version": OPEN, "sys/module/nvidia/refcnt": "1", "sys/module/ext4/refcnt": "1"})
    )
    assert (found.open_module, found.modules) == (True, {"nvidia"})
    (tmp_path / "proc/driver/nvidia/version").write_text(PROPRIETARY)
    assert not read_driver(tmp_path).open_module


@pytest.mark.parametrize(("text", "version"), [(PROPRIETARY, "535.261.03"), (OPEN, "580.159.04"), ("", "")])
def test_the_version_of_the_loaded_module(tmp_path: Path, text: str, version: str) -> None:
    assert read_driver(write_tree(tmp_path, {"proc/driver/nvidia/version": text})).loaded == version


@pytest.mark.parametrize(
    ("line", "there"),
    [
        ("updates/dkms/nvidia.ko.xz:", True),
        ("updates/dkms/nvidia-current.ko:", True),
        ("updates/dkms/nvidia-current-open.ko.xz: kernel/drivers/acpi/video.ko", True),
        ("updates/dkms/nvidia-tesla-470.ko:", True),
        ("updates/dkms/nvidia-legacy-390xx.ko:", True),
        ("kernel/nvidia-580-open/nvidia.ko.zst:", True),
        ("updates/dkms/nvidia-uvm.ko: updates/dkms/nvidia.ko", False),
        ("updates/dkms/nvidia-current-drm.ko:", False),
        ("kernel/drivers/video/fbdev/nvidia/nvidiafb.ko:", False),
        ("kernel/drivers/platform/x86/nvidia-wmi-ec-backlight.ko:", False),
        ("kernel/drivers/gpu/drm/nouveau/nouveau.ko:", False),
    ],
)
def test_whether_there_is_a_module_for_the_running_kernel(tmp_path: Path, line: str, there: bool) -> None:  # noqa: FBT001 -- a row
    files = {"proc/sys/kernel/osrelease": f"{KERNEL}\n", f"lib/modules/{KERNEL}/modules.dep": f"kernel/fs/ext4/ext4.ko:\n{line}\n"}
    assert read_driver(write_tree(tmp_path, dict(files))).built is there


def test_only_nvidias_display_controllers_are_cards(tmp_path: Path) -> None:
    add_card(tmp_path, "0000:01:00.0", "nouveau")
    add_card(tmp_path, "0000:01:00.1", "snd_hda_intel", kind="0x040300")  # its sound
    add_card(tmp_path, "0000:02:00.0", kind="0x030200")  # a 3D controller: a data-centre card
    add_card(tmp_path, "0000:03:00.0", "amdgpu", vendor="0x1002")
    assert read_driver(tmp_path).pci == (PciCard("0000:01:00.0", "nouveau"), PciCard("0000:02:00.0"))


@pytest.mark.parametrize(("content", "on"), [(b"\x06\0\0\0\x01", True), (b"\x06\0\0\0\0", False), (b"\x06", False)])
def test_secure_boot(tmp_path: Path, content: bytes, on: bool) -> None:  # noqa: FBT001 -- a row of the table
    name = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
    assert read_driver(write_tree(tmp_path, {name: content})).secure_boot is on


@pytest.mark.parametrize(
    ("text", "system"),
    [
        ('PRETTY_NAME="x"\nVERSION_ID="13"\nID=debian\n', "debian13"),
        ("ID=debian\n", "debian"),
        ('ID=ubuntu\nVERSION_ID="24.04"\n', "ubuntu2404"),
    ],
)
def test_the_system(tmp_path: Path, text: str, system: str) -> None:
    assert read_driver(write_tree(tmp_path, {"etc/os-release": text})).system == system


# --- NVML, in a process of its own


def said(text: str) -> tuple[str, ...]:
    return (sys.executable, "-I", "-c", f"print({text!r})")


def test_what_nvml_says_is_taken_over() -> None:
    cards = [{"name": "NVIDIA H200", "capability": [9, 0]}, {"name": "", "capability": [0, 0]}]
    answer = {"error": 0, "library": "580.159.04", "driver": "580.159.04", "cuda": 13000, "cards": cards}
    found = ask_nvml(said(json.dumps(answer)))
    assert found == Nvml(
        0, library="580.159.04", driver="580.159.04", cuda=(13, 0), cards=(NvmlCard("NVIDIA H200", (9, 0)), NvmlCard("", (0, 0)))
    )
    assert Driver(nvml=found).answers
    assert Driver(nvml=ask_nvml(said(json.dumps(answer | {"cuda": 12040})))).nvml.cuda == (12, 4)


def test_a_library_that_refuses_or_is_not_there() -> None:
    assert ask_nvml(said('{"error": 18, "library": "580.159.04"}')) == Nvml(18, library="580.159.04")
    assert ask_nvml(said('{"error": null}')) == Nvml()


@pytest.mark.parametrize("program", ["print('{')", "print('[]')", "", "import os; os.kill(os.getpid(), 11)"])
def test_a_library_that_breaks_is_an_error_and_no_traceback(program: str) -> None:
    found = ask_nvml((sys.executable, "-I", "-c", program))
    assert found.error
    assert not found.cards


def test_a_card_that_hangs_is_waited_for_no_longer_than_that() -> None:
    began = time.monotonic()
    found = ask_nvml((sys.executable, "-I", "-c", "import time; time.sleep(60)"), 0.3)
    assert found.hung
    assert time.monotonic() - began < 10
