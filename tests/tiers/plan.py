"""The tiers of the system tests: what each selects, how many of its machines run at once, and which tiers wait for each other."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Tier:
    """A selection of tests that one pytest runs.

    arguments: what pytest is told. workers: how many test modules, each with machines of its own, run at once.
    lane: tiers of one lane run one after another; lanes run side by side. environment: variables added to pytest's own.
    """

    name: str
    arguments: tuple[str, ...]
    workers: int
    lane: str
    environment: dict[str, str] = field(default_factory=dict)


# What another release may break: its dpkg, apt and debhelper, its systemd with our units and their sandboxes, earlyoom, the journal, the
# kernel's limits as systemd sets them, its Python and aiohttp. By module; () are all tests of a module. What a server does, what vllm-safe
# decides of it and what it says are the same code on all, and stay with bookworm, as does the real vLLM, whose wheels are those of its
# Python. The tests of what is installed, of limits, permissions and data run on the release itself, in the autopkgtest of test_build.
_OF_A_RELEASE: dict[str, tuple[str, ...]] = {
    "build": (),
    "package": (
        "test_installing_prints_the_next_steps_once",
        "test_an_upgrade_leaves_models_limits_and_config_alone",
        "test_a_removal_stops_models_and_undoes_what_was_applied",
        "test_an_image_can_be_built_without_proc",
        "test_one_that_is_not_configured_can_be_removed",
        "test_a_purge_after_use_leaves_only_what_is_the_users",
    ),
    "upgrade": (
        "test_an_upgrade_from_the_last_release_asks_nothing_and_stops_nothing",
        "test_a_configuration_that_nobody_touched_becomes_the_short_one",
        "test_an_upgrade_restarts_what_watches_the_model_and_nothing_else",
        "test_an_upgrade_that_was_broken_off_is_mended[postinst-configure-killed]",
        "test_a_removal_that_was_broken_off_can_be_taken_back[killed]",
        "test_a_downgrade_to_the_last_release_stops_nothing_either",
        "test_an_upgrade_of_the_os_breaks_nothing",
    ),
    "service": (
        "test_started_means_that_it_answers",
        "test_it_runs_as_vllm_without_any_power",
        "test_its_shared_memory_is_its_own_and_as_large_as_usual",
        "test_the_exposure_is_low",
        "test_systemd_knows_every_key",
        "test_the_key_reaches_the_server_and_nobody_else",
        "test_a_killed_process_ends_everything_and_it_is_tried_again",
        "test_a_main_process_that_hangs_is_ended_by_systemd",
        "test_stopping_the_target_stops_every_model",
        "test_a_drop_in_of_the_admin",
    ),
    "on_demand": (
        "test_a_connection_starts_the_model_and_gets_its_answer",
        "test_only_the_gateway_and_root_may_use_its_socket",
        "test_it_ends_when_nobody_asks_and_the_next_request_starts_it_again",
        "test_a_restart_by_itself_leaves_it_what_it_was",
        "test_an_edit_moves_the_socket_and_a_mistake_moves_nothing",
        "test_an_upgrade_closes_no_socket_and_ends_no_model",
        "test_a_removal_leaves_nothing",
    ),
    "record": ("test_a_run_from_its_start_to_its_end", "test_only_those_who_may_read_the_journal_read_it", "test_it_has_no_powers"),
    "power": ("test_it_says_what_it_would_do_and_does_it_while_a_model_runs",),
    "why": ("test_stopped_by_a_person", "test_many_ends"),
    "report": ("test_what_runs_is_shown_and_what_was_recorded_is_drawn",),
    "bundle": (),
}
_OF_ITS_AIOHTTP: dict[str, tuple[str, ...]] = {
    "gateway": (
        "test_it_answers_of_itself_and_wakes_nothing",
        "test_a_request_starts_its_model",
        "test_a_stream_passes_after_comments_about_the_load",
        "test_a_kill_of_the_gateway_loses_nothing_of_a_model",
        "test_a_stop_of_the_gateway_ends_streams_with_an_event",
        "test_a_key_of_the_gateway",
        "test_a_removal_ends_it",
    )
}


def _release(suite: str, lane: str, tests: Mapping[str, Sequence[str]], but: str = "") -> Tier:
    files = {f"tests/system/test_{module}.py": names for module, names in tests.items()}
    selected = [test for file, names in files.items() for test in ([f"{file}::{name}" for name in names] or [file])]
    return Tier(suite, (*selected, "-m", f"nspawn and not engine{but}"), 2, lane, {"VLLM_SAFE_RELEASE": suite})


# Two machines of QEMU keep two processors busy. Containers mostly wait, so they run beside them. Both lanes take about as long.
TIERS = {
    tier.name: tier
    for tier in (
        Tier("vm", ("tests/system", "-m", "vm"), 2, "vm"),
        Tier("nspawn", ("tests/system", "-m", "not vm and not os_upgrade and not long"), 2, "nspawn"),
        # The upgrade of the OS ends at trixie; the gateway has its tests on the oldest and the newest release.
        _release("trixie", "nspawn", _OF_A_RELEASE),
        _release("sid", "vm", _OF_A_RELEASE | _OF_ITS_AIOHTTP, " and not os_upgrade"),
        Tier("nodes", ("tests/system", "-m", "long"), 1, "nspawn"),
    )
}


def command(tier: Tier) -> list[str]:
    """Return the command line that runs `tier` and reports each test on the descriptor that reports.DESCRIPTOR names."""
    return [
        *(sys.executable, "-m", "pytest", "-p", "tests.tiers.reports", "-o", f"cache_dir=.pytest_cache/{tier.name}"),
        # A module keeps its machines, and its order; the modules start in the order of the collection: the longest first.
        *(f"--numprocesses={tier.workers}", "--dist=loadfile", "--no-loadscope-reorder", *tier.arguments),
    ]


def lanes(tiers: Sequence[Tier]) -> list[list[Tier]]:
    """Return the tiers by lane, each lane in the order given."""
    names = dict.fromkeys(tier.lane for tier in tiers)
    return [[tier for tier in tiers if tier.lane == name] for name in names]
