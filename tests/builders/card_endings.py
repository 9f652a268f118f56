"""Runs that ended by their cards, or in waiting for them: the kernel's real lines through the recorder's own reader."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tests.builders import reasons
from tests.builders.runs import BEGUN, EACH, HOST, LOADING, make_run
from vllm_safe.contract.recorded_run import Event, Run
from vllm_safe.contract.state_file import CardUsage
from vllm_safe.record.card_faults import find_faults
from vllm_safe.record.kill_evidence import JournalLine

_RTX = "NVIDIA GeForce RTX 3060"
CARDS = [{"pci": f"0000:0{bus}:00.0", "name": _RTX, "bridges": [f"0000:00:0{bus + 1}.0"]} for bus in range(1, 9)]
START = {"host": {**HOST, "cards": CARDS}}
WORKER = 71
_SAID = "(Worker_TP0 pid=71) ERROR 11-23 22:20:57 [multiproc_executor.py:1010] torch.AcceleratorError: CUDA error: {}"
# Real ones; tests/unit/record/test_faults.py has their sources.
LOST = (
    "pcieport 0000:00:02.0: AER: Multiple Uncorrectable (Fatal) error message received from 0000:00:02.0",
    "NVRM: Xid (PCI:0000:01:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
    "NVRM: GPU 0000:01:00.0: GPU has fallen off the bus.",
    "NVRM: Xid (PCI:0000:01:00): 154, GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)",
)
ECC = (
    "NVRM: Xid (PCI:0000:02:00): 48, pid=71, name=VLLM::Worker_TP, DBE (double bit error)",
    "NVRM: Xid (PCI:0000:02:00): 63, pid=71, Row Remapper: New row marked for remapping, reset gpu to activate.",
    "NVRM: Xid (PCI:0000:02:00): 45, pid=71, name=VLLM::Worker_TP, Ch 00000008",
)
FAULT = (
    (
        "NVRM: Xid (PCI:0000:03:00): 31, pid=71, name=VLLM::Worker_TP, Ch 00000008, intr 00000000. MMU Fault: ENGINE GRAPHICS "
        "GPCCLIENT_T1_10 faulted @ 0x7fd7_90743000. Fault is of type FAULT_PDE ACCESS_TYPE_VIRT_READ"
    ),
)
MISMATCH = (
    (
        "NVRM: API mismatch: the client has the version 535.247.01, but\nNVRM: this kernel module has the version 535.230.02.  Please\n"
        "NVRM: make sure that this kernel module and all NVIDIA driver\nNVRM: components have the same version."
    ),
)
WAITING = (
    "(EngineCore pid=71) INFO 11-23 22:{}:57 [shm_broadcast.py:705] No available shared memory broadcast block found in 60 seconds. This "
    "typically happens when some processes are hanging or doing some time-consuming work (e.g. compilation, weight/kv cache quantization)."
)


def said(*texts: str, at: float = BEGUN + 12) -> list[Event]:
    """Return the events of these lines of the kernel, a tenth of a second apart."""
    lines = [JournalLine(at + number / 10, 100.0 + number, kernel=True, text=text) for number, text in enumerate(texts)]
    return find_faults(lines, 0.0, {WORKER, 72, 73}, CARDS)


loaded = partial(make_run, phases=LOADING, each=EACH)
served = partial(make_run, each=EACH)


def _crashed(events: list[Event], error: str) -> Run:
    line = _SAID.format(error)
    return served(start=START, gpus=8, end=reasons.exited_serving(0, line, after=6.0), events=events, log=[line])


def _minutes(line: str) -> list[str]:
    return [line.format(minute) for minute in range(21, 37)]


CASES: dict[str, Callable[[], Run]] = {
    "gpu-fault": lambda: _crashed(said(*LOST), "unspecified launch failure"),
    "gpu-fault-memory": lambda: _crashed(said(*ECC), "uncorrectable ECC error encountered"),
    "gpu-fault-while-loading": lambda: loaded(
        start=START, gpus=8, end=reasons.stall(), stuck=reasons.LOADS_AT, events=said(*LOST, at=BEGUN + 3)
    ),
    "gpu-program-fault": lambda: _crashed(said(*FAULT), "an illegal memory access was encountered"),
    "no-gpu-driver-mismatch": lambda: make_run(
        start=START,
        phases=("starting", "importing"),
        end=reasons.exited(1 << 8, "RuntimeError: Failed to infer device type"),
        events=said(*MISMATCH, at=BEGUN + 8),
        log=["RuntimeError: Failed to infer device type"],
    ),
    "stall-in-vain": lambda: loaded(start=START, gpus=8, end=reasons.stall(said=WAITING), stuck=reasons.LOADS_AT, log=_minutes(WAITING)),
    "stall-with-busy-cards": lambda: loaded(start=START, gpus=8, end=reasons.stall(cards=CardUsage(64 << 30, 1.0)), stuck=reasons.LOADS_AT),
    "stall-until-start-timeout": lambda: loaded(
        start={**START, "profile": "pcie-riser", "args": {"tensor-parallel-size": 2, "disable-custom-all-reduce": True}},
        end=reasons.start_timeout(),
        log=_minutes(WAITING),
    ),
    "hang-in-vain": lambda: served(start=START, gpus=8, end=reasons.hang(), stuck=reasons.READY_AT, log=_minutes(WAITING)),
}
