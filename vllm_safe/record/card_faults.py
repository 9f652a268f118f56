"""Messages about the GPUs that the kernel and NVIDIA's driver logged during a run, from the journal."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from vllm_safe.contract.recorded_run import Event
from vllm_safe.record.kill_evidence import JournalLine

# The patterns for journalctl; the lines are then parsed with the patterns below. There are two, since a riser may cause so many messages
# about its link that they would crowd out those of the driver.
GREPS = ("NVRM|nvidia", "AER: |PCIe Bus Error|DPC: |pciehp: ")
_MOST_EVENTS = 40
_SHOWN = 400  # characters of a line that an event contains

# src/nvidia/src/kernel/gpu/rc/kernel_rc.c (open-gpu-kernel-modules 595). For a MIG device it prints "(PCI:0000:01:00 GPU-I:02)", without a
# process "pid='<unknown>', name=<unknown>". Drivers before 346 printed no "PCI:", before 450 no pid.
_XID = re.compile(
    r"NVRM: Xid \((?:PCI:)?(?P<pci>[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2})[^)]*\): (?P<xid>\d+)\b"
    r"(?:, pid=(?:'<unknown>'|(?P<pid>\d+)))?(?:, name=(?P<process>.*?)(?=, |$))?"
)
_ACTION = re.compile(r"GPU recovery action changed from .*? to \w+ \((?P<action>[^)]*)\)")  # Xid 154
_CLIENT = re.compile(r"the client '(?P<process>[^']*)' \(pid (?P<pid>\d+)\)")
_VERSIONS = re.compile(r"has the version (?P<client>[\d.]*\d).*?kernel module has the version (?P<module>[\d.]*\d)")
_KINDS = (
    ("lost", re.compile(r"NVRM: .*fallen off the bus|NVRM: .*GPU is lost")),
    ("init", re.compile(r"NVRM: .*(?:RmInitAdapter|rm_init_adapter) failed")),  # os-interface.c, osinit.c: each time the device is opened
    ("mismatch", re.compile(r"NVRM: API mismatch")),
    ("uvm", re.compile(r"NVRM: .*uvm encountered global fatal error")),  # nv_gpu_ops.c: persists until the next boot
    (
        "module",  # nv.c, nv-pci.c; the kernel's module/version.c, module/main.c
        re.compile(
            r"NVRM: .*(?:is not supported by|probe routine (?:was not called|failed) for|No NVIDIA (?:GPU|devices|graphics adapter)|"
            r"None of the NVIDIA|init module failed|loading NVIDIA UNIX .*fail)|"
            r"nvidia[\w-]*: (?:Unknown symbol|disagrees about version|version magic)|nvidia[_-]uvm: .*fail"
        ),
    ),
)
# drivers/pci/pcie/aer.c (after the first |: its format before Linux 6.9), dpc.c, pciehp_ctrl.c
_LINK = re.compile(
    r"AER: .*?\b(?P<severity>(?:Unc|C)orrect\w+(?: \((?:Non-)?Fatal\))?) error (?:message )?received|"
    r"PCIe Bus Error: severity=(?P<same>(?:Unc|C)orrect\w+(?: \((?:Non-)?Fatal\))?)|"
    r"DPC: containment event|pciehp: Slot\(.*?\): (?:Link Down|Card not present)"
)
_ADDRESS = re.compile(r"\b(?P<pci>[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2})(?:\.[0-7])?\b")


def find_faults(lines: Iterable[JournalLine], since: float, pids: Collection[int], cards: Sequence[Mapping[str, Any]]) -> list[Event]:
    """Return events of the kind "nvidia": the first message of each sort, with the number of its occurrences.

    since: seconds of the monotonic clock. pids: all processes of the unit that were ever seen. cards: the GPUs of the run's start.
    `data["own"]` says whether the process in the message was one of the unit's; None if that is unknown.
    """
    events: dict[tuple[object, ...], Event] = {}
    for line in lines:
        if not line.kernel or line.at < since:
            continue
        text = _one_line(line.text)
        if not (data := _read(text, cards)):
            continue
        pid = data.get("pid")
        data |= {"own": pid in pids if pids and pid is not None else None, "times": 1}
        key = tuple(data.get(name) for name in ("kind", "xid", "pci", "own", "severity", "action"))
        if before := events.get(key):
            times = before.data["times"] + 1
            events[key] = before._replace(data={**before.data, "times": times})
        elif len(events) < _MOST_EVENTS:
            events[key] = Event(line.time, "nvidia", f"the kernel logged: {text[:_SHOWN]}", data)
    return [_with_times(event) for event in events.values()]


def _one_line(text: str) -> str:
    """Join the lines of a message: the driver's messages may have several, each with its own "NVRM:"."""
    first, *more = [" ".join(line.split()) for line in text.splitlines()] or [""]
    return " ".join([first, *(line.removeprefix("NVRM: ") for line in more)])


def _with_times(event: Event) -> Event:
    times = event.data["times"]
    return event._replace(text=f"{event.text} ({times} times)") if times > 1 else event


def _read(text: str, cards: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the data in a line, or {}."""
    if match := _XID.search(text):
        mild = {"severity": "non-fatal"} if " Nonfatal " in text else {}  # in the Xids of NVLink, 144 to 150
        return (
            mild
            | {
                "kind": "xid",
                "xid": int(match["xid"]),
                "pci": match["pci"].lower(),
                "pid": int(match["pid"]) if match["pid"] else None,
                "process": "" if match["process"] in {None, "<unknown>"} else match["process"],
            }
            | ({"action": action["action"]} if (action := _ACTION.search(text)) else {})
        )
    for kind, regex in _KINDS:
        if regex.search(text):
            return {"kind": kind} | _details(text)
    return _read_link(text, cards)


def _details(text: str) -> dict[str, Any]:
    address, client, versions = _ADDRESS.search(text), _CLIENT.search(text), _VERSIONS.search(text)
    data: dict[str, Any] = {"pci": address["pci"].lower() if address else ""}
    data |= {"pid": int(client["pid"]), "process": client["process"]} if client else {}
    return data | (versions.groupdict() if versions else {})


def _read_link(text: str, cards: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return an error of a PCIe link with a GPU behind it, or {}: the last address in the line is that of the reporting device."""
    addresses = [match[0].lower() for match in _ADDRESS.finditer(text)]
    if not addresses or not (match := _LINK.search(text)):
        return {}
    behind = [card["pci"] for card in cards if addresses[-1] in {card["pci"], *card["bridges"]}]
    if not behind:
        return {}
    words = match["severity"] or match["same"] or "Uncorrectable (Fatal)"  # the other messages mean that the link is down
    severity = "correctable" if words.startswith("C") else "non-fatal" if "Non-" in words else "fatal"
    address = behind[0] if len(behind) == 1 else addresses[-1]
    return {"kind": "link", "pci": address.rpartition(".")[0], "severity": severity}
