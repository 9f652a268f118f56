"""The diagnosis of a run: rules in the order of their certainty, of which the first with a verdict decides."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from vllm_safe.common.printable_text import printable
from vllm_safe.contract.recorded_run import Run
from vllm_safe.diagnose import card_figures, card_verdicts, end_verdicts, error_verdicts, hang_verdicts, kill_verdicts
from vllm_safe.diagnose.verdict import Case, Evidence, SettingChange, Verdict

Rule = Callable[[Case], Verdict | None]

# Rules about who killed the server come before those about its own errors, since a dying server prints many. So do rules about the kernel's
# messages on the cards. Rules about its own errors come before those about how it ended.
RULES: tuple[Rule, ...] = (
    end_verdicts.running,
    end_verdicts.machine_went_down,
    end_verdicts.record_broke_off,
    end_verdicts.stopped,
    end_verdicts.made_room,
    end_verdicts.idle,
    end_verdicts.refused,
    end_verdicts.gave_up,
    end_verdicts.no_start,
    end_verdicts.another_node,
    kill_verdicts.by_guard,
    kill_verdicts.at_memory_limit,
    kill_verdicts.by_earlyoom,
    kill_verdicts.by_kernel_outside,
    card_verdicts.card_failed,
    card_verdicts.driver_mismatched,
    card_verdicts.card_misused,
    hang_verdicts.load_stalled,
    hang_verdicts.hung,
    hang_verdicts.start_timeout,
    hang_verdicts.watchdog,
    hang_verdicts.systemd_timeout,
    error_verdicts.known_error,
    error_verdicts.engine_died,
    end_verdicts.signalled,
    end_verdicts.ended_by_itself,
)


def decide_why(run: Run, boot: str, now: float) -> Verdict:
    """Return why the run stopped. boot: the id of the present boot; now: Unix seconds."""
    case = Case(run, boot, now)
    verdict = next((found for rule in RULES if (found := rule(case))), None) or end_verdicts.unknown(case)
    others = [*case.late("guard")[-4:], *case.of("unread")] if verdict.code != "running" else []
    figures = (*card_figures.slowed_cards(case), *card_figures.narrowed_links(case))
    more = [*(Evidence(event.time, event.text) for event in others), *card_verdicts.card_evidence(case), *figures]
    evidence = _in_order(dict.fromkeys((*verdict.evidence, *more)))
    return verdict._replace(
        sentence=_line(verdict.sentence),
        evidence=tuple(fact._replace(text=_line(fact.text)) for fact in evidence),
        changes=tuple(SettingChange(*map(_line, change)) for change in verdict.changes if _plain(change.old) != _plain(change.new)),
        hint=_line(verdict.hint),
    )


def decide_why_down(refused: Verdict, run: Run, verdict: Verdict) -> Verdict:
    """Return why a model stays down: `verdict` on the last `run` before the start that was `refused` as one restart too many."""
    name, restarts = run.start.name, run.start.restart
    after = f" after {restarts} automatic restart{'s' if restarts > 1 else ''}" if restarts else ""
    again = f"Then: systemctl start vllm@{name}"
    return verdict._replace(
        sentence=f"{name} stays down{after}: {verdict.sentence}",
        evidence=_in_order([*verdict.evidence, Evidence(refused.when, "not restarted again: the limit of automatic restarts is reached")]),
        hint=f"{verdict.hint} {again}" if verdict.hint else again,
    )


def _plain(value: str) -> str:
    """Return a value in the form in which values are compared, so that a value is not suggested that is already set in another spelling."""
    word = value.strip("\"' ").lower()
    try:
        return f"{float(word):g}"
    except ValueError:
        return word


def _in_order(evidence: Iterable[Evidence]) -> tuple[Evidence, ...]:
    """Return the evidence sorted by time; evidence on the whole run comes last."""
    return tuple(sorted(evidence, key=lambda fact: math.inf if fact.time is None else fact.time))


def _line(text: str) -> str:
    """Return the text as one line without control characters, since much of it was written by servers."""
    return printable(" ".join(text.split()))
