"""Tests that every failure of a hub has a message of one line, with a hint."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from vllm_safe.models.as_engine import hub_download
from vllm_safe.models.hub_failure import _OTHERS, HubRequest, hub_failure

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
ASKED = HubRequest("tiny", "acme/m", revision="v9", config="/etc/vllm-safe/config.yaml")
WITH_TOKEN = HubRequest("tiny", "acme/m", config="/etc/vllm-safe/config.yaml", token_file="/etc/vllm-safe/token")  # noqa: S106 -- a path


def say(asked: HubRequest = ASKED, **trouble: object) -> tuple[str, str]:
    failure = hub_failure(trouble, asked, NOW)
    return failure.message, failure.hint


def test_every_kind_that_the_downloader_raises_has_its_words() -> None:
    source = "".join(path.read_text() for path in Path(hub_download.__file__).parent.glob("*.py"))
    raised = set(re.findall(r'Trouble\("([a-z-]+)"', source)) | {"gated", "missing", "revision", "disk"}
    assert len(raised) >= 16
    for kind in raised:
        message, hint = say(trouble=kind)
        assert "\n" not in message
        assert hint
        assert "without an error message" not in message, kind
    assert raised >= set(_OTHERS)


def test_gated_says_where_the_licence_is_and_which_setting_takes_the_token() -> None:
    message, hint = say(trouble="gated")
    assert "gated" in message
    for words in ("https://huggingface.co/acme/m", "https://huggingface.co/settings/tokens", "engine.hub_token_file", "config.yaml"):
        assert words in hint


def test_gated_for_the_account_of_a_token() -> None:
    message, hint = say(WITH_TOKEN, trouble="gated")
    assert "/etc/vllm-safe/token has no access to acme/m" in message
    assert "https://huggingface.co/acme/m" in hint


def test_a_missing_model_may_be_private() -> None:
    message, hint = say(trouble="missing")
    assert message == "the hub has no model acme/m, or it is private"
    assert "models.tiny.model" in hint
    assert "engine.hub_token_file" in hint
    assert "engine.hub_token_file" not in say(WITH_TOKEN, trouble="missing")[1]


def test_a_mirror_is_named_instead_of_the_public_hub() -> None:
    _, hint = say(HubRequest("tiny", "acme/m", hub="https://mirror.example/hub"), trouble="missing")
    assert "https://mirror.example/hub/acme/m" in hint
    assert "huggingface.co" not in hint


def test_a_busy_hub_says_when_to_come_back() -> None:
    message, hint = say(trouble="busy", seconds=600)
    assert "rate-limited by the hub (HTTP 429); retry after 12:10" in message
    assert "vllm-safe fetch tiny --revision v9" in hint
    assert "engine.hub_token_file" in hint


@pytest.mark.parametrize("seconds", [0, None, "soon", 1e9, -5])
def test_a_busy_hub_that_gives_no_sensible_time(seconds: object) -> None:
    message, hint = say(trouble="busy", seconds=seconds)
    assert message == "rate-limited by the hub (HTTP 429)"
    assert "in an hour" in hint


def test_a_full_disk_says_how_much_is_still_to_come() -> None:
    assert say(trouble="disk-full", missing=3 << 30)[0] == "the disk is full: 3.0 GiB are still missing"
    assert say(trouble="disk-full")[0] == "the disk is full"
    assert say(trouble="disk-full", missing=10**400)[0] == "the disk is full"


def test_the_network_troubles_name_the_host() -> None:
    assert "the name huggingface.co cannot be resolved" in say(trouble="dns")[0]
    assert say(trouble="broken", said="[Errno 111] Connection refused")[0].endswith("failing: [Errno 111] Connection refused")
    assert "huggingface.co" in say(trouble="broken", said="x")[0]
    assert say(trouble="tls", said="self-signed certificate")[0].endswith("not trusted: self-signed certificate")


def test_what_another_user_says_cannot_steer_a_terminal_or_fill_it() -> None:
    message, _ = say(trouble="refused", status=403, said="\x1b[2J\n\x07evil {again} " + "x" * 5000)
    assert message.isprintable()
    assert "{again}" in message
    assert len(message) < 300


@pytest.mark.parametrize("trouble", [{}, {"trouble": "news"}, {"trouble": ["x"]}, {"trouble": "disk", "said": {"a": 1}}])
def test_nonsense_is_still_one_line(trouble: dict[str, object]) -> None:
    message, hint = say(**trouble)
    assert message.isprintable()
    assert hint


@pytest.mark.parametrize(
    "trouble", [{"trouble": "dns"}, {"trouble": "busy"}, {"trouble": "busy", "seconds": 600}, {"trouble": "server"}, {}]
)
def test_a_plan_has_received_nothing_and_can_do_without_the_hub(trouble: dict[str, object]) -> None:
    _, hint = say(HubRequest("acme/m", "acme/m", config="/etc/vllm-safe/config.yaml", verb="plan"), **trouble)
    assert "vllm-safe plan acme/m" in hint
    assert "vllm-safe plan ./FOLDER" in hint
    assert "Received" not in hint


def test_a_model_that_is_not_configured_is_not_said_to_be() -> None:
    assert "models." not in say(HubRequest("acme/m", "acme/m", verb="plan"), trouble="missing")[1]
