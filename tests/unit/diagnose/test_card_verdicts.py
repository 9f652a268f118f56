"""Tests of verdicts from the kernel's messages on GPUs, and on processes that wait for each other without progress."""

from __future__ import annotations

from typing import Any

import pytest

from tests.builders import reasons
from tests.builders.card_endings import CARDS, CASES, ECC, LOST, MISMATCH, START, WAITING, WORKER, loaded, said, served
from tests.builders.runs import BEGUN, BOOT
from vllm_safe.contract.recorded_run import Event, Gpu, Run
from vllm_safe.diagnose.diagnosis import decide_why
from vllm_safe.diagnose.verdict import Verdict
from vllm_safe.diagnose.xids import XIDS, explain_xid

NOW = BEGUN + 20
CUDA = "torch.AcceleratorError: CUDA error: unspecified launch failure"
FOLLOWING = (
    "NVRM: Xid (PCI:0000:03:00): 43, pid=71, name=VLLM::Worker_TP, Ch 00000008",
    "NVRM: Xid (PCI:0000:03:00): 45, pid=71, name=VLLM::Worker_TP, Ch 00000008",
)
# Numbers of NVIDIA's catalogue that must be explained.
EXPLAINED = (8, 13, 31, 32, 38, 43, 45, 48, 56, 61, 62, 63, 64, 68, 69, 74, 79, 92, 94, 95, 109, 119, 120, 140, 154)
OF_THE_CARD = (48, 61, 62, 63, 64, 74, 79, 92, 94, 95, 119, 120, 140)


def judge(*texts: str, log: tuple[str, ...] = (CUDA,), at: float = BEGUN + 12, run: Run | None = None, **more: Any) -> Verdict:  # noqa: ANN401
    """Return the verdict on a model that served and ended, with these messages of the kernel."""
    end = {"cause": "exited", "reason": "the server ended after serving for 2 s (exit status 0)"}
    run = run or served(**{"start": START, "end": end, "log": log} | more)
    return decide_why(run._replace(events=(*run.events, *said(*texts, at=at))), BOOT, NOW)


def idle(run: Run) -> Run:
    """Return the same run without a generated token."""
    return run._replace(samples=tuple(sample._replace(tokens=0) for sample in run.samples))


def xid(number: int, *, card: int = 3, rest: str = ", pid=71, name=VLLM::Worker_TP, Ch 00000008") -> str:
    return f"NVRM: Xid (PCI:0000:0{card}:00): {number}{rest}"


@pytest.mark.parametrize("number", EXPLAINED)
def test_each_number_is_explained_and_says_what_to_do(number: int) -> None:
    assert number in XIDS
    assert explain_xid(number).what
    assert explain_xid(number).todo.endswith(".")


@pytest.mark.parametrize("number", OF_THE_CARD)
@pytest.mark.parametrize("pid", [WORKER, 4711])
def test_a_fault_of_the_card_is_one_whoever_used_it(number: int, pid: int) -> None:
    verdict = judge(xid(number, rest=f", pid={pid}, name=python3, x"))
    assert verdict.code == "gpu-fault"
    assert verdict.sentence.startswith("qwen72b ended because of GPU 2 (NVIDIA GeForce RTX 3060, 0000:03:00): ")
    assert verdict.sentence.endswith(f" (Xid {number}), 28 s before the server ended.")
    assert verdict.hint == XIDS[number].todo


def test_a_lost_card_cannot_be_waited_for_and_several_are_named() -> None:
    verdict = judge(*LOST, xid(79, card=5, rest=", GPU has fallen off the bus."), xid(45))
    assert verdict.code == "gpu-fault"
    assert "GPU 0 (NVIDIA GeForce RTX 3060, 0000:01:00) and GPU 4 (" in verdict.sentence
    assert "Neither waiting, a restart of the model nor a reset helps: power the machine off and on." in verdict.hint
    assert any(LOST[1] in fact.text for fact in verdict.evidence), "the kernel's own line"


@pytest.mark.parametrize("number", [13, 31, 32, 69, 109])
def test_what_the_program_did_is_not_the_cards_fault(number: int) -> None:
    verdict = judge(xid(number), *FOLLOWING)
    assert verdict.code == "gpu-program-fault"
    assert "seldom the GPU" in verdict.hint
    assert f"(Xid {number})" in verdict.sentence


@pytest.mark.parametrize("number", [8, 13, 31, 43, 45, 109])
def test_what_another_program_did_is_no_evidence(number: int) -> None:
    verdict = judge(xid(number, rest=", pid=4711, name=python3, Ch 00000008"))
    assert verdict.code == "gpu-fault", "by its own words"
    assert "Xid" not in verdict.sentence
    assert not any("NVRM" in fact.text for fact in verdict.evidence)


def test_what_follows_from_a_kill_proves_nothing() -> None:
    killed = {"cause": "exited", "reason": "the server ended after serving for 2 s (killed by SIGKILL)"}
    verdict = judge(*FOLLOWING, end=killed, log=("INFO all is well",))
    assert verdict.code == "signal"
    assert sum("not evidence of a cause" in fact.text for fact in verdict.evidence) == 2


def test_who_killed_it_goes_before_what_the_card_said() -> None:
    kill = Event(BEGUN + 13, "kernel-oom", "the kernel killed process 71 (VLLM::Worker_TP) at a memory limit", {"limit": True})
    verdict = judge(xid(31), *FOLLOWING, run=served(start=START, end={"cause": "exited"}, events=[kill]))
    assert verdict.code.startswith("memory-limit")


def test_what_it_said_clearly_goes_before_what_its_program_did() -> None:
    memory = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 224.00 MiB."
    assert judge(xid(31), log=(memory,)).code == "cuda-memory"
    assert judge(xid(48), log=(memory,)).code == "gpu-fault", "a broken GPU goes before it"
    assert judge(xid(63), log=(memory,)).code == "cuda-memory", "and one that wears does not"
    assert judge(xid(31), log=()).code == "gpu-program-fault"


def test_the_first_fault_is_the_cause_and_what_the_driver_wants_is_told() -> None:
    verdict = judge(
        xid(119, rest=", pid=4711, name=nvc:[driver], Timeout after 6s of waiting for RPC response from GPU1 GSP!"), xid(95), LOST[3]
    )
    assert "(Xid 119)" in verdict.sentence
    assert "NVreg_EnableGpuFirmware=0" in verdict.hint
    assert verdict.hint.endswith("The driver asks for a reboot.")
    alone = judge("NVRM: Xid (PCI:0000:01:00): 154, GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)")
    assert alone.code == "gpu-fault"
    assert alone.hint.startswith("The driver asks for a reset of the GPU")
    healed = judge("NVRM: Xid (PCI:0000:01:00): 154, GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)")
    assert "Xid" not in healed.sentence


@pytest.mark.parametrize(
    ("cause", "before", "code"),
    [
        ("exited", 60.0, "gpu-fault"),
        ("exited", 1000.0, "exited"),
        ("hang", 1000.0, "gpu-fault"),  # within hang_timeout and a half
        ("hang", 20_000.0, "hang"),
    ],
)
def test_what_was_long_before_is_not_the_cause(cause: str, before: float, code: str) -> None:
    end = reasons.hang() if cause == "hang" else {"cause": "exited", "reason": "the server ended (exit status 0)"}
    run = idle(served(start=START, end=end, log=()))
    assert run.end is not None
    assert judge(xid(48), at=run.end.time - before, run=run).code == code


def test_a_lost_card_is_the_cause_however_long_ago() -> None:
    run = idle(served(start=START, end=reasons.hang(), log=()))
    assert judge(LOST[1], at=BEGUN - 1e6, run=run).code == "gpu-fault"


@pytest.mark.parametrize(
    ("seen", "code"), [("0,1", "gpu-program-fault"), ("0,2", "gpu-fault"), ("GPU-4a28de72", "gpu-fault"), ("", "gpu-fault")]
)
def test_a_card_that_it_may_not_see_is_not_its_card(seen: str, code: str) -> None:
    """The cause is then an Xid 31 of its own card; otherwise it is the memory of the other card."""
    start = {**START, "env": {"CUDA_VISIBLE_DEVICES": seen}}
    assert judge(xid(48, card=3), xid(31, card=1), start=start).code == code


def test_a_card_of_which_nothing_was_taken_is_not_its_card() -> None:
    """The model uses the first two of eight cards."""
    end = {"cause": "exited", "reason": "the server ended (exit status 1)"}
    run = served(start=START, end=end, log=(CUDA,))
    samples = tuple(
        sample._replace(gpus=tuple(Gpu((number << 30) if card < 2 else 5 << 20, 12 << 30, 0.5) for card in range(len(CARDS))))
        for number, sample in enumerate(run.samples)
    )
    verdict = judge(xid(48, card=3), run=run._replace(samples=samples))
    assert "GPU 2" not in verdict.sentence
    assert "GPU 1 (" in judge(xid(48, card=2), run=run._replace(samples=samples)).sentence


def test_a_run_of_an_older_recorder_names_the_card_by_its_address() -> None:
    verdict = judge(*ECC, start={})
    assert verdict.sentence.startswith("qwen72b ended because of the GPU at 0000:02:00: ")


def test_an_unknown_number_says_where_it_is_explained() -> None:
    verdict = judge(xid(9999), log=("INFO all is well",))
    assert "Xid" not in verdict.sentence
    assert any("unknown Xid; see https://docs.nvidia.com/deploy/xid-errors" in fact.text for fact in verdict.evidence)


def test_a_mild_error_of_a_link_is_evidence_and_no_verdict() -> None:
    nonfatal = "NVRM: Xid (PCI:0000:01:00): 145, RLW_RXPIPE Nonfatal XC0 i0 Link 13 (0x0409a0c2 0x8 0x0 0x0 0x00100000 0x4)"
    corrected = "pcieport 0000:00:02.0: AER: Correctable error message received from 0000:01:00.0"
    verdict = judge(nonfatal, corrected, log=("INFO all is well",))
    assert verdict.code == "exited"
    assert sum("the kernel logged" in fact.text for fact in verdict.evidence) == 2
    fatal = judge(LOST[0], log=("INFO all is well",))
    assert fatal.code == "gpu-fault"
    assert "the PCIe link of its slot has failed" in fatal.sentence


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (
            "NVRM: GPU 0000:02:00.0: RmInitAdapter failed! (0x24:0x65:1185)",
            "GPU 1 (NVIDIA GeForce RTX 3060, 0000:02:00): the driver could not",
        ),
        ("NVRM: nvGpuOpsReportFatalError: uvm encountered global fatal error 0x60, requiring os reboot to recover.", "(UVM) has failed"),
    ],
)
def test_a_driver_that_has_given_up_on_a_card(text: str, part: str) -> None:
    end = {"cause": "exited", "reason": "the server ended after 9 s, before it was ready (exit status 1)"}
    verdict = judge(text, run=loaded(start=START, end=end, log=(CUDA,)))
    assert verdict.code == "gpu-fault"
    assert part in verdict.sentence


@pytest.mark.parametrize(("log", "code"), [((CUDA,), "gpu-fault"), (("OSError: [Errno 98] Address already in use",), "port-taken")])
def test_a_card_that_never_comes_up_is_not_to_blame_for_all_else(log: tuple[str, ...], code: str) -> None:
    """The kernel prints the message for each program that opens the card."""
    dead = "NVRM: GPU 0000:02:00.0: RmInitAdapter failed! (0x24:0x65:1185)"
    end = {"cause": "exited", "reason": "the server ended after 9 s, before it was ready (exit status 1)"}
    assert judge(dead, run=loaded(start=START, end=end, log=log)).code == code
    assert judge(*MISMATCH, run=loaded(start=START, end=end, log=log)).code == ("no-gpu" if code == "gpu-fault" else code)
    assert "card" not in judge(dead, run=served(start=START, end={"cause": "exited"}, log=("INFO",))).sentence


def test_who_went_on_to_serve_did_not_need_that_card() -> None:
    """A card was lost an hour before, and the model generated a token a second since."""
    run = served(start=START, end={"cause": "exited", "reason": "the server ended (exit status 1)"}, log=(CUDA,), seconds=3600.0)
    assert "bus" not in judge(LOST[1], at=BEGUN + 2000, run=run).sentence
    assert "bus" in judge(LOST[1], at=BEGUN + 3590, run=run).sentence


def test_a_driver_of_another_version_matters_only_to_a_start() -> None:
    """A monitoring tool of another version in a container causes the message all day long."""
    assert judge(*MISMATCH, log=()).code == "exited"
    other = (
        "NVRM: API mismatch: the client 'nvidia-smi' (pid 4098353)\nNVRM: has the version 570.86.15, but this kernel module has\n"
        "NVRM: the version 565.57.01."
    )
    end = {"cause": "exited", "reason": "the server ended after 9 s, before it was ready (exit status 1)"}
    assert judge(other, run=loaded(start=START, end=end, log=())).code == "exited"
    started = judge("NVRM: The NVIDIA probe routine was not called for 1 device(s).", run=loaded(start=START, end=end, log=()))
    assert (started.code, "nouveau" in started.hint) == ("no-gpu", True)


def test_a_stop_is_not_blamed_on_a_card() -> None:
    assert judge(*LOST, run=served(start=START, end={"cause": "stopped", "reason": "stopping"})).code == "stopped"


# --- waiting without progress


@pytest.mark.parametrize("case", ["stall-in-vain", "stall-with-busy-cards", "stall-until-start-timeout", "hang-in-vain"])
def test_who_waits_in_vain_is_not_told_to_wait_longer(case: str) -> None:
    verdict = decide_why(CASES[case](), BOOT, NOW)
    assert "waited for each other without progress" in verdict.sentence
    assert verdict.changes
    assert {change.path.rpartition(".")[2] for change in verdict.changes} <= {"disable-custom-all-reduce", "NCCL_P2P_DISABLE"}
    assert "A longer timeout does not help" in verdict.hint


def test_what_is_so_already_is_not_suggested() -> None:
    start = {
        **START,
        "profile": "pcie-riser",
        "args": {"tensor-parallel-size": 2, "disable-custom-all-reduce": True},
        "env": {"NCCL_P2P_DISABLE": "1"},
    }
    verdict = decide_why(loaded(start=start, end=reasons.stall(said=WAITING), log=()), BOOT, NOW)
    assert verdict.changes == ()
    assert "NCCL_DEBUG" in verdict.hint


@pytest.mark.parametrize("sizes", [{}, {"tensor-parallel-size": 1}])
def test_a_single_worker_waits_for_nobody(sizes: dict[str, int]) -> None:
    verdict = decide_why(loaded(start={**START, "args": sizes}, end=reasons.stall(said=WAITING), log=()), BOOT, NOW)
    assert "its engine waited for its worker without progress" in verdict.sentence
    assert verdict.changes == ()


def test_workers_are_counted_over_all_ways_to_split_a_model() -> None:
    start = {**START, "args": {"pipeline-parallel-size": 2}}
    assert decide_why(loaded(start=start, end=reasons.stall(said=WAITING), log=()), BOOT, NOW).changes


def test_who_is_stopped_or_gone_is_the_reason_itself() -> None:
    """Its engine reports that a worker does not respond, and the reason is known."""
    log = [WAITING.format(minute) for minute in range(21, 37)]
    verdict = decide_why(served(start=START, end=reasons.hang(left=()), log=log), BOOT, NOW)
    assert "is gone" in verdict.sentence
    assert "without progress" not in verdict.sentence


FURTHER = "(Worker_TP0 pid=93) INFO 11-23 22:40:01 [gpu_worker.py:1] Available KV cache memory: 3.81 GiB"


@pytest.mark.parametrize(
    ("log", "code"),
    [
        ([WAITING.format(21), WAITING.format(22), "INFO step 1"], "start-timeout"),
        ([*map(WAITING.format, range(21, 31)), FURTHER, "INFO step 1"], "start-timeout"),  # it compiled for ten minutes, and went on
        ([FURTHER, *map(WAITING.format, range(21, 31))], "stall"),
        ([*map(WAITING.format, range(21, 31)), "Traceback (most recent call last):", "  File x", "KeyboardInterrupt: terminated"], "stall"),
    ],
)
def test_what_it_said_before_the_end_decides(log: list[str], code: str) -> None:
    """The output of a server that is asked to end is not progress."""
    verdict = decide_why(loaded(start=START, end=reasons.start_timeout(), log=log), BOOT, NOW)
    assert verdict.code == code


# --- the profile for risers is for cards on risers


def _hang(*lanes: int, env: dict[str, str] | None = None, log: tuple[str, ...] = ()) -> Verdict:
    cards = [{**card, "lanes": width} for card, width in zip(CARDS, lanes, strict=False)]
    start = {"host": {**START["host"], "cards": cards}, "env": env or {}}
    return decide_why(served(start=start, end=reasons.hang(), log=log), BOOT, NOW)


@pytest.mark.parametrize("lanes", [(), (16, 16), (4, 8), (0, 0)])
def test_a_hang_of_cards_on_wide_links_says_nothing_for_risers(lanes: tuple[int, ...]) -> None:
    assert "riser" not in str(_hang(*lanes))


@pytest.mark.parametrize(
    ("lanes", "said"), [((1, 1), "2 of 2 GPUs have a PCIe link of x1"), ((16, 1, 2), "2 of 3 GPUs have a PCIe link of x2 or less")]
)
def test_a_hang_of_cards_on_narrow_links_does(lanes: tuple[int, ...], said: str) -> None:
    (change, *_) = _hang(*lanes).changes
    assert (change.path, change.new) == ("models.qwen72b.profile", "pcie-riser")
    assert change.reason.startswith(said)


def test_a_narrow_link_of_a_card_that_the_model_does_not_see_says_nothing() -> None:
    assert "riser" not in str(_hang(16, 16, 1, env={"CUDA_VISIBLE_DEVICES": "0,1"}))


def test_nccl_itself_may_say_that_cards_do_not_reach_each_other() -> None:
    line = "(Worker_TP1 pid=72) ERROR 11-23 22:20:57 [x.py:1] RuntimeError: NCCL error: remote process exited or there was a network error"
    (change, *_) = _hang(16, 16, log=(line,)).changes
    assert change.new == "pcie-riser"
    assert change.reason.startswith("NCCL reported an error")


def test_who_waits_in_vain_is_told_of_the_profile_where_links_are_narrow() -> None:
    log = [WAITING.format(minute) for minute in range(21, 37)]
    for width, named in ((1, True), (16, False)):
        start = {"host": {**START["host"], "cards": [{**card, "lanes": width} for card in CARDS]}}
        verdict = decide_why(served(start=start, gpus=8, end=reasons.hang(), log=log), BOOT, NOW)
        assert ("pcie-riser" in verdict.hint) is named
        assert verdict.changes
