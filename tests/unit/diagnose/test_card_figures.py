"""What the recorded figures of the cards say of an end: heat, power and links."""

from __future__ import annotations

from collections.abc import Callable

from tests.builders import reasons
from tests.builders.card_endings import LOST, START, said, served
from tests.builders.runs import BEGUN, BOOT, make_run
from vllm_safe.contract.recorded_run import Event, Gpu, Run
from vllm_safe.diagnose.card_figures import drawn_power, narrowed_links, slowed_cards
from vllm_safe.diagnose.diagnosis import decide_why
from vllm_safe.diagnose.verdict import Case

GIB = 1 << 30
COOL = Gpu(10 * GIB, 11 * GIB, 0.9, 160.0, 71, 0.0, 0.0, 0.0, 16, 3)


def with_cards(card: Callable[[int, float], Gpu], *, gpus: int = 4, seconds: float = 100.0, ended: bool = True) -> Run:
    """Return a run with a sample each second, in which each card (by number and seconds) is as told."""
    run = make_run(seconds=seconds, gpus=gpus, end={"cause": "exited"} if ended else None)
    samples = [sample._replace(gpus=tuple(card(number, sample.time - BEGUN) for number in range(gpus))) for sample in run.samples]
    return run._replace(samples=tuple(samples))


def case_of(run: Run) -> Case:
    return Case(run, BOOT, (run.end or run.samples[-1]).time + 1)


def hot(number: int, at: float) -> Gpu:
    """Card 3 is too hot for 80 % of each second of the last minute."""
    return COOL._replace(heat=0.8, temperature=91) if number == 3 and at > 40 else COOL


def test_heat_is_told_with_its_share_of_the_last_minute() -> None:
    run = with_cards(hot)
    (fact,) = slowed_cards(case_of(run))
    assert fact.text == "GPU 3 was throttled by heat for 80 % of the last minute, at up to 91 °C"
    assert fact in decide_why(run, BOOT, BEGUN + 101).evidence


def test_a_running_model_is_told_of_it_too() -> None:
    run = with_cards(hot, ended=False)
    verdict = decide_why(run, BOOT, run.samples[-1].time)
    assert verdict.code == "running"
    assert any("GPU 3 was throttled by heat" in fact.text for fact in verdict.evidence)


def test_several_cards_are_one_line_and_each_reason_another() -> None:
    def card(number: int, _at: float) -> Gpu:
        return COOL._replace(heat=0.5 if number < 2 else 0.05, braked=1.0 if number == 2 else 0.0, temperature=80 + number)

    heat, brake = slowed_cards(case_of(with_cards(card)))
    assert heat.text == "GPUs 0 and 1 were throttled by heat for 50 % of the last minute, at up to 81 °C"
    assert brake.text.startswith("GPU 2 was slowed by the power supply or its own protection")


def test_what_was_before_the_last_minute_or_after_the_end_does_not_count() -> None:
    run = with_cards(lambda _, at: COOL._replace(heat=float(at < 35 or at > 97)))
    ended = run._replace(events=(*run.events, Event(BEGUN + 97, "phase", "ended")))
    assert slowed_cards(case_of(ended)) == []
    short = with_cards(lambda *_: COOL._replace(heat=1.0), seconds=20.0)
    assert "for 100 % of the last 19 s" in slowed_cards(case_of(short))[0].text


def test_a_steady_model_has_a_sample_each_ten_seconds() -> None:
    run = with_cards(lambda *_: COOL._replace(heat=0.8), seconds=300.0)
    assert "for 80 % of the last minute" in slowed_cards(case_of(run))[0].text


def test_what_an_older_recorder_did_not_know_is_no_evidence() -> None:
    case = case_of(with_cards(lambda *_: Gpu(GIB, 2 * GIB, 1.0)))
    assert (slowed_cards(case), narrowed_links(case), drawn_power(case)) == ([], [], [])


def test_a_link_that_lost_lanes_is_told_with_its_time() -> None:
    case = case_of(with_cards(lambda number, at: COOL._replace(lanes=4 if number == 1 and at >= 50 else 16)))
    assert [(fact.time, fact.text) for fact in narrowed_links(case)] == [(BEGUN + 50, "the PCIe link of GPU 1 went from x16 to x4")]
    healed = case_of(with_cards(lambda _, at: COOL._replace(lanes=4 if 20 < at < 30 else 16)))
    assert narrowed_links(healed) == []


def test_a_machine_that_went_down_says_what_the_cards_drew() -> None:
    run = with_cards(lambda *_: COOL, ended=False)
    verdict = decide_why(run, "another", BEGUN + 1000)
    assert verdict.code == "power-cut"
    assert any(fact.text == "4 GPUs drew 640 W together at the last record, at up to 71 °C" for fact in verdict.evidence)


def test_a_lost_card_is_told_with_the_time_that_the_server_went_on() -> None:
    run = served(start=START, gpus=8, end=reasons.exited_serving(0, "CUDA error", after=6.0), events=said(*LOST))
    end = run.end
    assert end is not None
    ended = Event(end.time - 0.4, "phase", "ended")
    verdict = decide_why(run._replace(events=(*run.events, ended)), BOOT, end.time + 1)
    assert verdict.sentence.endswith("no longer responds (Xid 79), 1 s before the server ended.")
