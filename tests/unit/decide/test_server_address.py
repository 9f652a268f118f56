"""Where a server and its files are."""

from __future__ import annotations

import pytest

from tests.builders.launches import HOST, config_of, launch_of
from vllm_safe.config.settings import Model
from vllm_safe.decide.serve_command import decide_server
from vllm_safe.decide.server_address import health_url


def test_a_path_is_served_as_it_is() -> None:
    arguments = decide_server(config_of(model="/data/qwen"), HOST, "x", {}).arguments
    assert arguments["model"].value == "/data/qwen"


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000/health"),
        ("0.0.0.0", "http://127.0.0.1:8000/health"),  # noqa: S104 - a text
        ("::", "http://[::1]:8000/health"),
        ("fe80::1", "http://[fe80::1]:8000/health"),
        ("box.lan", "http://box.lan:8000/health"),
    ],
)
def test_health_is_asked_where_the_server_can_be_reached(host: str, url: str) -> None:
    assert health_url(Model(model="a/b", host=host)) == url


def test_the_health_url_of_the_model_wins() -> None:
    assert launch_of(health="http://127.0.0.1:9/up").health == "http://127.0.0.1:9/up"
