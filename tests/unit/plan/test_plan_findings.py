"""Tests of what `vllm-safe check` and a start say of a model that fits, that does not, and of which that is not certain."""

from __future__ import annotations

from dataclasses import replace

from tests.truth.starts import CARDS, model_config
from vllm_safe.common.findings import Finding, Level
from vllm_safe.common.sizes import GIB
from vllm_safe.plan.headers_facts import StoredModel
from vllm_safe.plan.host_needs import HostLimits
from vllm_safe.plan.plan_facts import PlanFacts
from vllm_safe.plan.plan_findings import find_plan_problem
from vllm_safe.plan.serving import Serving

RTX = CARDS["RTX 3060"]
SMALL = PlanFacts(StoredModel(model_config("qwen2.5-0.5b")), Serving(), (RTX,))
LARGE = PlanFacts(StoredModel(model_config("llama-8b")), Serving(), (RTX,))
OFFLOADED = Serving(unplanned=("cpu-offload-gb",))


def found(facts: PlanFacts, limits: HostLimits | None = None, *, refuses: bool = True) -> Finding:
    return find_plan_problem("x", facts, limits or HostLimits(), refuses=refuses)


def test_a_model_that_fits() -> None:
    finding = found(SMALL)
    assert finding.level is Level.PASS
    assert finding.what.startswith("x fits: ")


def test_a_model_that_cannot_fit_is_refused_or_warned_of() -> None:
    finding = found(LARGE)
    assert finding.level is Level.FAIL
    assert finding.what.startswith("x cannot start: no memory would be left for the KV cache")
    assert finding.do_next.endswith("Details: vllm-safe plan x. To try it all the same: models.x.plan: warn")
    warning = found(LARGE, refuses=False)
    assert (warning.level, warning.what) == (Level.WARN, finding.what)


def test_what_others_use_now_refuses_no_start() -> None:
    finding = found(replace(SMALL, cards=(replace(RTX, used=6 * GIB),)))
    assert finding.level is Level.WARN
    assert finding.what.startswith("x may not start: vLLM would ask for 10.8 GiB of GPU 0, of which 5.8 GiB are free")


def test_what_is_not_taken_into_account_refuses_no_start() -> None:
    finding = found(replace(LARGE, serving=OFFLOADED))
    assert finding.level is Level.WARN
    assert "the estimate leaves something out (the option cpu-offload-gb)" in finding.what


def test_what_fits_without_it_is_no_reason_for_a_warning() -> None:
    finding = found(replace(SMALL, serving=OFFLOADED))
    assert finding.level is Level.PASS
    assert finding.what == "x probably fits, but the estimate leaves something out (the option cpu-offload-gb)"


def test_the_memory_of_the_host() -> None:
    finding = found(SMALL, HostLimits(memory=GIB))
    assert finding.level is Level.FAIL
    assert "its processes need about" in finding.what
    assert "Raise limits.memory_max" in finding.do_next
