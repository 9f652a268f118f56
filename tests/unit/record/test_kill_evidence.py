"""Kills of processes, from lines of the kernel and of earlyoom."""

from __future__ import annotations

import pytest

from vllm_safe.record import kill_evidence
from vllm_safe.record.kill_evidence import JournalLine, find_deaths, read_journal

UNIT = "vllm@demo.service"
SUMMARY = (
    "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/vllm.slice/{unit},"
    "task_memcg=/vllm.slice/{unit},task=VLLM::Worker_TP,pid=412,uid=998"
)
KILLED = (
    "Memory cgroup out of memory: Killed process 412 (VLLM::Worker_TP) total-vm:900000kB, anon-rss:700000kB, file-rss:1000kB, "
    "shmem-rss:0kB, UID:998 pgtables:1500kB oom_score_adj:1000"
)
GLOBAL_SUMMARY = (
    "oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,"
    "task_memcg=/vllm.slice/vllm@demo.service,task=python3,pid=500,uid=998"
)
GLOBAL_KILLED = "Out of memory: Killed process 500 (python3) total-vm:9kB, anon-rss:7kB, file-rss:1kB, shmem-rss:0kB, UID:998 pgtables:1kB"


def kernel(*texts: str, at: float = 100.0) -> list[JournalLine]:
    return [JournalLine(1e9 + number, at + number, kernel=True, text=text) for number, text in enumerate(texts)]


def test_at_the_memory_limit() -> None:
    (event,) = find_deaths(kernel(SUMMARY.format(unit=UNIT), KILLED), 0, UNIT, set())
    assert event.kind == "kernel-oom"
    assert event.text == "the kernel killed process 412 (VLLM::Worker_TP) at a memory limit"
    assert event.data["anon"] == 700000 * 1024
    assert event.data["constraint"] == "CONSTRAINT_MEMCG"
    assert event.data["oom_memcg"] == f"/vllm.slice/{UNIT}"
    assert event.time == 1e9 + 1


def test_the_swap_at_the_memory_limit() -> None:
    """The kernel reports the swap of the cgroup whose limit was reached before each kill; "max" means none."""
    swap = "swap: usage 98068kB, limit {limit}kB, failcnt 0"
    lines = kernel(swap.format(limit=98304), SUMMARY.format(unit=UNIT), KILLED)
    (event,) = find_deaths(lines, 0, UNIT, set())
    assert (event.data["swap"], event.data["swap_limit"]) == (98068 * 1024, 98304 * 1024)
    assert event.text == "the kernel killed process 412 (VLLM::Worker_TP) at a memory limit, with 95.8 MiB of 96.0 MiB of swap used"
    (event,) = find_deaths(kernel(swap.format(limit=9007199254740988), SUMMARY.format(unit=UNIT), KILLED), 0, UNIT, set())
    assert "swap" not in event.data
    *_, event = find_deaths([*lines, *kernel(SUMMARY.format(unit=UNIT), KILLED)], 0, UNIT, set())
    assert "swap" not in event.data


def test_outside_of_any_limit() -> None:
    (event,) = find_deaths(kernel(GLOBAL_SUMMARY, GLOBAL_KILLED), 0, UNIT, set())
    assert event.text == "the kernel killed process 500 (python3) because the machine was out of memory"
    assert event.data["limit"] is False
    assert event.data["oom_memcg"] == ""


def test_another_models_death_is_not_this_ones() -> None:
    assert find_deaths(kernel(SUMMARY.format(unit="vllm@demo2.service"), KILLED), 0, UNIT, {412}) == []
    assert find_deaths(kernel(GLOBAL_SUMMARY.replace("vllm@demo.", "ssh."), GLOBAL_KILLED), 0, UNIT, set()) == []


def test_a_death_without_its_first_line_goes_by_the_process() -> None:
    assert len(find_deaths(kernel(KILLED), 0, UNIT, {412})) == 1
    assert find_deaths(kernel(KILLED), 0, UNIT, {413}) == []


def test_what_was_before_the_run_is_not_its_own() -> None:
    assert find_deaths(kernel(SUMMARY.format(unit=UNIT), KILLED, at=10), 50, UNIT, {412}) == []


@pytest.mark.parametrize(
    "sent",
    [
        'sending SIGTERM to process 412 uid 998 "VLLM::Worker_TP": badness 1300, VmRSS 700 MiB',  # 1.7
        'sending SIGTERM to process 412 uid 998 "VLLM::Worker_TP": oom_score 1300, VmRSS 700 MiB, cmdline "vllm serve"',  # 1.8, 1.9
    ],
)
def test_earlyoom(sent: str) -> None:
    low = "low memory! at or below SIGTERM limits: mem  5.00%, swap  5.00%"
    lines = [JournalLine(1e9, 10, kernel=False, text=low), JournalLine(1e9 + 1, 11, kernel=False, text=sent)]
    (event,) = find_deaths(lines, 0, UNIT, {412})
    assert event.kind == "earlyoom"
    assert event.text == "earlyoom sent SIGTERM to process 412 (VLLM::Worker_TP)"
    assert event.data["low"] == low
    assert event.data["signal"] == "SIGTERM"
    assert find_deaths(lines, 0, UNIT, {1}) == []


def test_who_only_talks_like_the_kernel_is_not_heard() -> None:
    lines = [JournalLine(1e9, 10, kernel=False, text=text) for text in (SUMMARY.format(unit=UNIT), KILLED)]
    assert find_deaths(lines, 0, UNIT, {412}) == []
    assert find_deaths(kernel('sending SIGTERM to process 412 uid 998 "x": badness 1'), 0, UNIT, {412}) == []


def test_a_storm_of_deaths_keeps_its_end() -> None:
    events = find_deaths([line for _ in range(500) for line in kernel(SUMMARY.format(unit=UNIT), KILLED)], 0, UNIT, set())
    assert len(events) == 20


def test_the_journal_is_asked_for_the_last_minutes_backwards_and_told_forwards(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def answer(argv: list[str]) -> tuple[str, bool]:
        asked.append(argv)
        rows = [(3, "c", "kernel"), (2, "b", "stdout"), (1, "a", "kernel")]
        return "".join(
            f'{{"__REALTIME_TIMESTAMP":"{second}000000","__MONOTONIC_TIMESTAMP":"{second}500000","MESSAGE":"{text}","_TRANSPORT":"{by}"}}\n'
            for second, text, by in rows
        ) + "torn", False

    monkeypatch.setattr(kill_evidence, "try_program_output", answer)
    lines, whole = read_journal(1000.7)
    assert [(line.time, line.at, line.kernel, line.text) for line in lines] == [
        (1.0, 1.5, True, "a"),
        (2.0, 2.5, False, "b"),
        (3.0, 3.5, True, "c"),
    ]
    assert not whole
    assert {"--since=@1000", "--reverse", "_SYSTEMD_UNIT=earlyoom.service"} <= set(asked[0])
    read_journal(1000.7, "NVRM|AER: ")
    assert {"--grep=NVRM|AER: ", "--case-sensitive=yes", "_TRANSPORT=kernel"} <= set(asked[1])
    assert "+" not in asked[1], "what earlyoom says is not asked for"
