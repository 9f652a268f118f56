"""What `show` says of the machines of a model."""

from __future__ import annotations

from pathlib import Path

from vllm_safe.config.reader import load
from vllm_safe.decide.node_rows import decide_node_rows
from vllm_safe.host.node_facts import NodeWay

WAY = NodeWay("gpu1", "10.0.0.1", "10.0.0.2", "lan0")


def _rows(tmp_path: Path, more: str = "", *ways: NodeWay) -> dict[str, tuple[str, str]]:
    (tmp_path / "c.yaml").write_text(
        f"models:\n  big:\n    model: a/b\n    nodes: [gpu1, gpu2]\n    args: {{tensor-parallel-size: 2}}\n{more}"
    )
    section = decide_node_rows(load(tmp_path / "c.yaml"), "big", 1, ways or (WAY,), "32768-60999")
    return {row.name: (row.text, row.origin.replace(f"{tmp_path}/", "")) for row in section.rows}


def test_the_place_the_way_and_the_ports(tmp_path: Path) -> None:
    assert _rows(tmp_path) == {
        "this machine": ("gpu2, 2 of 2", "c.yaml:4"),
        "gpu1": ("10.0.0.1 over lan0", "the route to it"),
        "VLLM_HOST_IP": ("10.0.0.2", "the route to gpu1, when it is started"),
        "NCCL_SOCKET_IFNAME": ("lan0", "the route to gpu1, when it is started"),
        "GLOO_SOCKET_IFNAME": ("lan0", "the route to gpu1, when it is started"),
        "port of vllm-safe": ("29500", "default; on gpu1"),
        "port of torch": ("29501", "the next one; on gpu1"),
        "ports of vLLM": (
            "32768-60999",
            "chosen by the kernel (net.ipv4.ip_local_port_range); on all machines, for ZeroMQ, gloo and NCCL",
        ),
    }


def test_what_the_model_sets_itself_is_not_replaced(tmp_path: Path) -> None:
    assert _rows(tmp_path, "    env: {NCCL_SOCKET_IFNAME: ib0}\n")["NCCL_SOCKET_IFNAME"] == ("ib0", "c.yaml:6")


def test_a_machine_that_is_not_found(tmp_path: Path) -> None:
    rows = _rows(tmp_path, "", NodeWay("gpu1", problem="its name has no IPv4 address: Name or service not known"))
    assert rows["gpu1"][0] == "its name has no IPv4 address: Name or service not known"
    assert "VLLM_HOST_IP" not in rows
