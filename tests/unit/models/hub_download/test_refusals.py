"""Tests that each refusal of a hub has a kind of its own."""

from __future__ import annotations

import socket

import pytest

from tests.fakes.hub import Fault, Hub

from .conftest import FILES, Downloader, tree_of

API = "/api/models/"


def test_a_misspelt_model_is_missing(downloader: Downloader) -> None:
    downloader.repo = "acme/tiny-modle"
    assert downloader.run("list").answer == {"trouble": "missing"}


def test_a_misspelt_model_is_missing_for_one_with_a_token_too(downloader: Downloader, token: str) -> None:
    assert token
    downloader.repo = "acme/tiny-modle"
    assert downloader.run("list").answer == {"trouble": "missing"}


def test_an_unknown_revision(downloader: Downloader) -> None:
    assert downloader.run("list", "--revision", "v9").answer == {"trouble": "revision"}


def test_a_branch_and_a_commit_are_revisions(downloader: Downloader, hub: Hub) -> None:
    first = hub.branches["main"]
    hub.branches["v1/beta"] = first
    hub.push({"config.json": b"{}"})
    assert downloader.run("list", "--revision", "v1/beta").answer["commit"] == first
    assert downloader.run("list", "--revision", first).answer["commit"] == first


@pytest.mark.parametrize("action", ["list", "get"])
def test_a_gated_model_is_refused_before_any_large_file(downloader: Downloader, hub: Hub, action: str) -> None:
    hub.gated = "manual"
    assert downloader.run(action).answer == {"trouble": "gated"}
    assert not any(request.path.startswith("/cdn/") for request in hub.requests)


def test_gated_with_403_is_gated_too(downloader: Downloader, hub: Hub) -> None:
    hub.faults = [Fault("/resolve/", status=403, headers={"X-Error-Code": "GatedRepo"})]
    assert downloader.run("get").answer == {"trouble": "gated"}


def test_a_token_opens_a_gated_model_and_goes_to_the_hub_alone(downloader: Downloader, hub: Hub, token: str) -> None:
    hub.gated = "auto"
    assert downloader.run("get").status == 0
    assert tree_of(downloader.folder) == FILES
    seen = {
        request.path.split("/")[1]: request.headers.get("authorization") or request.headers.get("Authorization") for request in hub.requests
    }
    assert seen["api"] == f"Bearer {token}"
    assert seen["cdn"] is None


def test_a_token_is_neither_shown_nor_kept(downloader: Downloader, hub: Hub, token: str) -> None:
    hub.faults = [Fault("/cdn/", after=0)]
    result = downloader.run("get")
    assert token not in result.stderr + str(result.answer)
    kept = [path for path in downloader.models.parent.rglob("*") if path.is_file() and path.name != "hub-token"]
    assert not any(token.encode() in path.read_bytes() for path in kept)


def test_a_token_that_the_hub_does_not_know(downloader: Downloader, hub: Hub, token: str) -> None:
    hub.token = f"not {token}"
    assert downloader.run("list").answer == {"trouble": "token"}


def test_a_busy_hub_is_waited_for(downloader: Downloader, hub: Hub) -> None:
    hub.faults = [Fault(API, status=429, headers={"Retry-After": "1"}), Fault("/cdn/", status=429, headers={"RateLimit": '"cdn";r=0;t=1'})]
    result = downloader.run("get")
    assert result.status == 0
    assert result.stderr.count("the hub is busy: retrying in 1 s") == 2


def test_a_hub_that_is_busy_for_too_long_is_left_alone(downloader: Downloader, hub: Hub) -> None:
    hub.faults = [Fault(API, status=429, headers={"Retry-After": "3600"})]
    assert downloader.run("list").answer == {"trouble": "busy", "seconds": 3600.0}
    assert len(hub.requests) == 1


def test_a_hub_that_stays_busy_is_given_up(downloader: Downloader, hub: Hub) -> None:
    hub.faults = [Fault(API, status=429) for _ in range(9)]
    assert downloader.run("list").answer["trouble"] == "busy"
    assert len(hub.requests) == 4


def test_a_fault_of_the_hub_that_passes_is_passed_over(downloader: Downloader, hub: Hub) -> None:
    hub.faults = [Fault(API, status=503), Fault("/resolve/", status=500)]
    assert downloader.run("get").status == 0


def test_a_fault_of_the_hub_that_stays(downloader: Downloader, hub: Hub) -> None:
    hub.faults = [Fault(API, status=502) for _ in range(4)]
    assert downloader.run("list").answer == {"trouble": "server", "status": 502}


def test_any_other_refusal_is_repeated_in_the_hubs_words(downloader: Downloader, hub: Hub) -> None:
    hub.faults = [Fault(API, status=403, headers={"X-Error-Message": "no service in your country"})]
    assert downloader.run("list").answer == {"trouble": "refused", "status": 403, "said": "no service in your country"}


@pytest.mark.parametrize("body", [b"<html>log in here</html>", b"[]", b'{"siblings": [{}]}', b'"text"'])
def test_what_is_no_hub(downloader: Downloader, hub: Hub, body: bytes) -> None:
    hub.faults = [Fault(API, status=200, body=body)]
    assert downloader.run("list").answer["trouble"] == "not-a-hub"


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/../../b", ".vllm-safe.json"])
def test_a_name_that_leads_out_of_the_folder(downloader: Downloader, hub: Hub, name: str) -> None:
    hub.push({"config.json": b"{}", name: b"x"})
    assert downloader.run("get").answer == {"trouble": "bad-name", "name": name}
    assert not downloader.folder.exists()


def test_a_listing_without_hashes(downloader: Downloader, hub: Hub) -> None:
    body = b'{"id": "acme/tiny-model", "sha": "0", "siblings": [{"rfilename": "config.json"}]}'
    hub.faults = [Fault(API, status=200, body=body)]
    assert downloader.run("list").answer == {"trouble": "no-hashes", "name": "config.json"}


def test_nobody_listens(downloader: Downloader, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as bound:  # bound and not listening, so that no other program gets the port
        bound.bind(("127.0.0.1", 0))
        monkeypatch.setattr(type(hub), "url", f"http://127.0.0.1:{bound.getsockname()[1]}")
        answer = downloader.run("list").answer
    assert answer["trouble"] == "broken"


def test_a_name_that_nobody_knows(downloader: Downloader, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(hub), "url", "http://hub.invalid")
    assert downloader.run("list").answer["trouble"] == "dns"
