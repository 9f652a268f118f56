"""Kills of processes, from the journal: the lines of the kernel and of earlyoom in the last minutes of a run."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from vllm_safe.common.program_output import try_program_output
from vllm_safe.common.sizes import format_size
from vllm_safe.contract.recorded_run import Event
from vllm_safe.contract.run_encoding import from_line, mapping

WINDOW = 300.0  # seconds before the end
AGAIN = 3.0  # seconds after which the journal is read once more, since a machine under pressure may be slow to write to it
UNREAD = "the journal could not be read in time: whether the kernel or earlyoom killed a process is not known"
_MOST_EVENTS = 20

# mm/oom_kill.c, dump_oom_summary: two lines for each kill, with the cgroup in the first and the memory in the second.
_SUMMARY = re.compile(
    r"oom-kill:constraint=(?P<constraint>\w+).*?(?:oom_memcg=(?P<oom_memcg>[^,]*),)?(?:global_oom,)?"
    r"task_memcg=(?P<task_memcg>.*?),task=(?P<task>.*?),pid=(?P<pid>\d+),uid=(?P<uid>\d+)"
)
_KILLED = re.compile(
    r"(?P<scope>Memory cgroup out of memory|Out of memory[^:]*): Killed process (?P<pid>\d+) \((?P<task>.*?)\)(?P<rest>.*)"
)
_SIZES = re.compile(r"(anon-rss|shmem-rss|file-rss):(\d+)kB")
# mm/memcontrol.c, mem_cgroup_print_oom_meminfo: printed before those two, for the cgroup whose limit was reached.
_SWAP = re.compile(r"swap: usage (?P<usage>\d+)kB, limit (?P<limit>\d+)kB")
_NO_LIMIT = 1 << 60  # bytes: the kernel prints a larger value for "max"

# earlyoom's kill.c. 1.7: `badness 1300, VmRSS 12 MiB`; 1.8 and 1.9: `oom_score 1300, VmRSS 12 MiB, cmdline "..."`.
_EARLYOOM = re.compile(r'sending (?P<signal>SIG\w+) to process (?P<pid>\d+)(?: uid (?P<uid>\d+))? "(?P<task>.*?)": (?P<rest>.*)')
_LOW = re.compile(r"low memory!.*|mem avail:.*")


class JournalLine(NamedTuple):
    """One line of the journal. time: Unix seconds. at: seconds of the monotonic clock. kernel: it is a kernel message."""

    time: float
    at: float
    kernel: bool
    text: str


def read_journal(since: float, grep: str = "") -> tuple[list[JournalLine], bool]:
    """Read the lines of the kernel and of earlyoom in this boot since a Unix time.

    Return the lines, oldest first, and whether all of them could be read. The journal is read backwards: if there are too many lines, or
    reading is too slow, the last ones count. grep: only lines of the kernel that match it.
    """
    fields = "--output-fields=MESSAGE,_TRANSPORT"
    command = ["journalctl", "--quiet", "--no-pager", "--boot=0", f"--since=@{int(since)}", "--reverse", "--lines=2000", "--output=json"]
    which = [f"--grep={grep}", "--case-sensitive=yes"] if grep else []
    whose = ["_TRANSPORT=kernel", *([] if grep else ["+", "_SYSTEMD_UNIT=earlyoom.service"])]
    printed, whole = try_program_output([*command, fields, *which, *whose])
    lines = []
    for line in printed.splitlines():
        entry = mapping(from_line(line))
        message, times = entry.get("MESSAGE"), [str(entry.get(f"__{clock}_TIMESTAMP")) for clock in ("REALTIME", "MONOTONIC")]
        if isinstance(message, str) and all(moment.isdecimal() for moment in times):
            lines.append(JournalLine(int(times[0]) / 1e6, int(times[1]) / 1e6, entry.get("_TRANSPORT") == "kernel", message))
    return lines[::-1], whole


def find_deaths(lines: Iterable[JournalLine], since: float, unit: str, pids: Collection[int]) -> list[Event]:
    """Return the kills of the unit's processes. since: seconds of the monotonic clock. pids: the unit's processes."""
    events: list[Event] = []
    reports: dict[str, tuple[re.Match[str], dict[str, int]]] = {}
    low, swap = "", dict[str, int]()
    for line in lines:
        if line.at < since:
            continue
        if line.kernel:
            if held := _SWAP.match(line.text):
                swap = {"swap": int(held["usage"]) * 1024, "swap_limit": int(held["limit"]) * 1024}
            elif summary := _SUMMARY.search(line.text):
                reports[summary["pid"]], swap = (summary, swap), {}
            elif killed := _KILLED.search(line.text):
                events += _kernel(line.time, killed, reports.get(killed["pid"]), unit, pids)
        elif sent := _EARLYOOM.search(line.text):
            events += _earlyoom(line.time, sent, low, pids)
        elif _LOW.match(line.text):
            low = line.text
    return events[-_MOST_EVENTS:]


def _kernel(
    time: float, killed: re.Match[str], report: tuple[re.Match[str], dict[str, int]] | None, unit: str, pids: Collection[int]
) -> list[Event]:
    pid, memcg = int(killed["pid"]), report[0]["task_memcg"] if report else ""
    if unit not in memcg.split("/") and (memcg or pid not in pids):
        return []
    limit = killed["scope"].startswith("Memory cgroup")
    sizes = {key.replace("-rss", ""): int(size) * 1024 for key, size in _SIZES.findall(killed["rest"])}
    where = "at a memory limit" if limit else "because the machine was out of memory"
    data: dict[str, Any] = {"pid": pid, "process": killed["task"], "limit": limit, **sizes}
    if report:
        summary, swap = report
        data |= {"constraint": summary["constraint"], "oom_memcg": summary["oom_memcg"] or "", "task_memcg": memcg}
        if 0 < swap.get("swap_limit", 0) < _NO_LIMIT:
            data |= swap
            where += f", with {format_size(swap['swap'])} of {format_size(swap['swap_limit'])} of swap used"
    return [Event(time, "kernel-oom", f"the kernel killed process {pid} ({killed['task']}) {where}", data)]


def _earlyoom(time: float, sent: re.Match[str], low: str, pids: Collection[int]) -> list[Event]:
    pid = int(sent["pid"])
    if pid not in pids:
        return []
    data = {"pid": pid, "process": sent["task"], "signal": sent["signal"], "low": low, "line": sent[0]}
    return [Event(time, "earlyoom", f"earlyoom sent {sent['signal']} to process {pid} ({sent['task']})", data)]
