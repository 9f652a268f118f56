"""The way to another machine, on this one."""

from __future__ import annotations

import pytest

from vllm_safe.launch.node_route import Route, find_route, is_private_address


def test_the_way_to_this_machine_is_its_loopback() -> None:
    assert find_route("127.0.0.1") == Route("127.0.0.1", "lo")


@pytest.mark.parametrize("address", ["10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.9", "100.64.0.1", "169.254.7.7", "127.0.1.1"])
def test_private_addresses(address: str) -> None:
    assert is_private_address(address)


@pytest.mark.parametrize("address", ["9.255.255.255", "11.0.0.0", "172.15.0.1", "172.32.0.1", "192.169.0.1", "100.128.0.1", "203.0.113.5"])
def test_public_addresses(address: str) -> None:
    assert not is_private_address(address)
