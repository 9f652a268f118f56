"""Messages of the kernel about GPUs: lines from public reports, each with its source."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_safe.record.card_faults import GREPS, find_faults
from vllm_safe.record.kill_evidence import JournalLine

CARDS = (
    {"pci": "0000:01:00.0", "name": "NVIDIA GeForce RTX 3060", "bridges": ["0000:00:02.0"]},
    {"pci": "0000:05:00.0", "name": "NVIDIA GeForce RTX 3060", "bridges": ["0000:00:1c.0", "0000:04:01.0"]},
    {"pci": "0000:06:00.0", "name": "NVIDIA GeForce RTX 3060", "bridges": ["0000:00:1c.0", "0000:04:02.0"]},
)
MINE = {13641}

LINES: list[tuple[str, dict[str, Any]]] = [
    # An H200, driver 580.159.04: a kernel that wrote to an unmapped address, and one that gave up
    (
        (
            "NVRM: Xid (PCI:0000:00:06): 31, pid=475, name=b, channel 0x0000000a, intr 00000000. MMU Fault: ENGINE GRAPHICS GPC1 "
            "GPCCLIENT_T1_8 faulted @ 0x1234_56789000. Fault is of type FAULT_PDE ACCESS_TYPE_VIRT_WRITE"
        ),
        {"kind": "xid", "xid": 31, "pci": "0000:00:06", "pid": 475, "process": "b", "own": False},
    ),
    ("NVRM: Xid (PCI:0000:00:06): 43, pid=481, name=b, channel 0x0000000a", {"kind": "xid", "xid": 43, "process": "b"}),
    # forums.developer.nvidia.com, a 3060 on a riser
    (
        "NVRM: Xid (PCI:0000:01:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
        {"kind": "xid", "xid": 79, "pci": "0000:01:00", "pid": None, "process": "", "own": None},
    ),
    ("NVRM: GPU 0000:01:00.0: GPU has fallen off the bus.", {"kind": "lost", "pci": "0000:01:00"}),
    (
        "NVRM: Xid (PCI:0000:01:00): 154, GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)",
        {"kind": "xid", "xid": 154, "pci": "0000:01:00", "action": "Node Reboot Required"},
    ),
    # pytorch issue 51382
    (
        (
            "NVRM: Xid (PCI:0000:db:00): 31, pid=13641, Ch 00000008, intr 00000000. MMU Fault: ENGINE GRAPHICS GPCCLIENT_T1_10 faulted @ "
            "0x7fd7_90743000. Fault is of type FAULT_PDE ACCESS_TYPE_VIRT_READ"
        ),
        {"kind": "xid", "xid": 31, "pci": "0000:db:00", "pid": 13641, "own": True},
    ),
    ("NVRM: Xid (PCI:0000:3d:00): 43, pid=35521, Ch 00000008", {"xid": 43, "pid": 35521, "own": False}),
    # open-gpu-kernel-modules issue 1150
    (
        "NVRM: Xid (PCI:0000:dc:00): 45, pid=1818990, name=python3, Ch 00000001 caused by previous Xid 149",
        {"xid": 45, "process": "python3", "own": False},
    ),
    # leptonai/gpud pull request 46
    (
        (
            "NVRM: Xid (PCI:0000:cb:00): 13, pid='<unknown>', name=<unknown>, Graphics SM Warp Exception on (GPC 7, TPC 7, SM 0): Illegal "
            "Instruction Parameter"
        ),
        {"xid": 13, "own": None},
    ),
    (
        "NVRM: Xid (PCI:0000:cb:00): 109, pid=1797828, name=pt_main_thread, Ch 00000008, errorString CTX SWITCH TIMEOUT, Info 0x58005",
        {"xid": 109, "process": "pt_main_thread"},
    ),
    # leptonai/gpud pull request 1174
    (
        "NVRM: Xid (PCI:0018:01:00): 145, RLW_RXPIPE Nonfatal XC0 i0 Link 13 (0x0409a0c2 0x00000008 0x00000001 0x00000000 0x00100000 0x4)",
        {"xid": 145, "pci": "0018:01:00", "severity": "non-fatal"},
    ),
    # NVSentinel, tests
    (
        (
            "NVRM: Xid (PCI:0002:00:00): 119, pid=1582259, name=nvc:[driver], Timeout after 6s of waiting for RPC response from GPU1 GSP! "
            "Expected function 76 (GSP_RM_CONTROL) (0x20802a02 0x8)."
        ),
        {"xid": 119, "process": "nvc:[driver]", "own": False},
    ),
    # stas00/ml-engineering; a MIG device in the format of kernel_rc.c; NVIDIA's document, for an old driver
    (
        "NVRM: Xid (PCI:0000:10:1c): 63, pid=1896, Row Remapper: New row marked for remapping, reset gpu to activate.",
        {"xid": 63, "pid": 1896},
    ),
    (
        "NVRM: Xid (PCI:0000:01:00 GPU-I:02 GPU-CI:00): 94, pid=13641, name=python3, Contained",
        {"xid": 94, "pci": "0000:01:00", "own": True},
    ),
    ("NVRM: Xid (0000:03:00): 14, Channel 00000001", {"xid": 14, "pci": "0000:03:00"}),
    # NVIDIA forum: a GPU that can no longer be initialized
    ("NVRM: GPU 0000:02:00.0: RmInitAdapter failed! (0x24:0x65:1185)", {"kind": "init", "pci": "0000:02:00"}),
    ("NVRM: GPU 0000:02:00.0: rm_init_adapter failed, device minor number 0", {"kind": "init", "pci": "0000:02:00"}),
    # qemu-devel; and driver 570, which names the client
    (
        (
            "NVRM: API mismatch: the client has the version 535.247.01, but\nNVRM: this kernel module has the version 535.230.02.  Please\n"
            "NVRM: make sure that this kernel module and all NVIDIA driver\nNVRM: components have the same version."
        ),
        {"kind": "mismatch", "client": "535.247.01", "module": "535.230.02", "own": None},
    ),
    (
        (
            "NVRM: API mismatch: the client 'nvidia-smi' (pid 4098353)\nNVRM: has the version 570.86.15, but this kernel module has\n"
            "NVRM: the version 565.57.01.  Please make sure that this\nNVRM: kernel module and all NVIDIA driver components\n"
            "NVRM: have the same version."
        ),
        {"kind": "mismatch", "client": "570.86.15", "module": "565.57.01", "process": "nvidia-smi", "own": False},
    ),
    # tinygrad and vast.ai: after a GPU was lost
    (
        "NVRM: nvGpuOpsReportFatalError: uvm encountered global fatal error 0x60, requiring os reboot to recover.",
        {"kind": "uvm", "pci": ""},
    ),
    # nv.c of the driver, and the kernel's module loader
    ("NVRM: The NVIDIA probe routine was not called for 1 device(s).", {"kind": "module"}),
    ("NVRM: None of the NVIDIA devices were initialized.", {"kind": "module"}),
    (
        (
            "NVRM: The NVIDIA GPU 0000:05:00.0 (PCI ID: 10de:20b0)\nNVRM: installed in this system is not supported by the\n"
            "NVRM: NVIDIA 535.309.01 driver release."
        ),
        {"kind": "module", "pci": "0000:05:00"},
    ),
    ("nvidia_uvm: Unknown symbol nvUvmInterfaceSessionDestroy (err -2)", {"kind": "module"}),
    # linux-pci: AER messages before and since Linux 6.9, about the slot of a GPU
    (
        "pcieport 0000:00:02.0: AER: Multiple Uncorrectable (Fatal) error message received from 0000:00:02.0",
        {"kind": "link", "pci": "0000:01:00", "severity": "fatal"},
    ),
    (
        "pcieport 0000:00:02.0: AER: Corrected error received: 0000:01:00.0",
        {"kind": "link", "pci": "0000:01:00", "severity": "correctable"},
    ),
    (
        "pcieport 0000:00:02.0: PCIe Bus Error: severity=Uncorrectable (Non-Fatal), type=Transaction Layer, (Requester ID)",
        {"kind": "link", "pci": "0000:01:00", "severity": "non-fatal"},
    ),
    ("pcieport 0000:00:1c.0: DPC: containment event, status:0x1f01 source:0x0000", {"pci": "0000:00:1c", "severity": "fatal"}),
    ("pcieport 0000:04:02.0: pciehp: Slot(2): Link Down", {"pci": "0000:06:00", "severity": "fatal"}),
]


def find(*texts: str, pids: set[int] = MINE, since: float = 0.0) -> list[dict[str, Any]]:
    lines = [JournalLine(1e9 + number, 100.0 + number, kernel=True, text=text) for number, text in enumerate(texts)]
    return [dict(event.data) for event in find_faults(lines, since, pids, CARDS)]


@pytest.mark.parametrize(("text", "expected"), LINES, ids=[text[:50] for text, _ in LINES])
def test_what_a_line_says(text: str, expected: dict[str, Any]) -> None:
    (data,) = find(text)
    assert {name: data[name] for name in expected} == expected
    assert data["times"] == 1


@pytest.mark.parametrize("text", [text for text, _ in LINES])
def test_what_is_read_is_asked_for(text: str) -> None:
    """The option --grep of journalctl searches a message as a whole."""
    assert any(word in text for grep in GREPS for word in grep.split("|"))


@pytest.mark.parametrize(
    "text",
    [
        "NVRM: GPU at PCI:0000:db:00: GPU-4a28de72-2645-de9a-eb35-a394cef3f4da",  # before the first Xid
        "NVRM: GPU Board Serial Number: 1653924101837",
        "NVRM: gpuClearFbhubPoisonIntrForBug2924523_GA100: FBHUB Interrupt detected. Clearing it.",
        "NVRM: Persistence mode is deprecated and will be removed in a future release. Please use nvidia-persistenced instead.",
        "NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build",
        "nvidia-uvm: Loaded the UVM driver, major device number 511.",
        "nvidia: module license 'NVIDIA' taints kernel.",
        "pcieport 0000:00:1c.5: AER: Correctable error message received from 0000:00:1c.5",  # a WLAN card
        "NVRM: Xid error: xyz, invalid data",
        "",
    ],
)
def test_what_is_no_fault_of_a_card(text: str) -> None:
    assert find(text) == []


def test_the_kernels_own_line_is_kept_in_one() -> None:
    text = next(text for text, data in LINES if data.get("client") == "535.247.01")
    (event,) = find_faults([JournalLine(1e9, 1.0, kernel=True, text=text)], 0, set(), ())
    assert event.text.startswith(
        "the kernel logged: NVRM: API mismatch: the client has the version 535.247.01, but this kernel module has the"
    )
    assert "\n" not in event.text
    assert (event.time, event.kind) == (1e9, "nvidia")


def test_a_storm_is_one_event_with_its_first_time_and_how_often() -> None:
    xid = LINES[0][0]
    lines = [JournalLine(1e9 + number, number, kernel=True, text=xid) for number in range(500)]
    (event,) = find_faults(lines, 0, MINE, CARDS)
    assert event.time == 1e9
    assert event.text.endswith(" (500 times)")
    each = [f"NVRM: Xid (PCI:0000:{bus:02x}:00): 31, pid=1" for bus in range(200)]
    assert len(find(*each)) == 40


def test_only_the_kernel_and_only_in_the_run() -> None:
    """Lines of other programs that imitate the driver are ignored, and so are lines before the run."""
    assert find_faults([JournalLine(1e9, 100.0, kernel=False, text=LINES[0][0])], 0, MINE, CARDS) == []
    assert find(LINES[0][0], since=200.0) == []


def test_whose_it_was_is_not_known_without_the_processes() -> None:
    """A recorder that only records the end has observed no processes."""
    (data,) = find(LINES[0][0], pids=set())
    assert data["own"] is None
