"""One model over two machines, with the real vLLM. Each fault ends both, and both say whose it was. More: test_node_faults.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.beds.lan import Lan
from tests.beds.switch import NETWORK

pytestmark = [pytest.mark.nspawn, pytest.mark.engine]

NODES = ("gpu1", "gpu2")


@pytest.fixture(scope="module")
def lan(deb: Path) -> Iterator[Lan]:
    # They wait longer than any test looks: what has ended stays as it is.
    with Lan(deb, {"big": NODES, "other": NODES}, wait="10min") as machines:
        yield machines


@pytest.fixture(autouse=True)
def _tidy(lan: Lan) -> Iterator[None]:
    yield
    lan.stop()


def test_machines_that_differ_are_told_before_the_load(lan: Lan) -> None:
    """The second waits for the first, as nobody has to mind the order."""
    first, second = lan.beds
    second.run("sed -i 's/enforce-eager: true/enforce-eager: true, max-model-len: 512/' /etc/vllm-safe/config.yaml")
    lan.start("big", 1)
    second.wait_for("it waits", lambda: lan.told("big")[1] == "waiting for gpu1", timeout=20)
    lan.start("big", 0)
    lan.wait_for_all("big", "failed", 30)
    assert lan.told("big") == ["args.max-model-len differs: none on gpu1, 512 on gpu2"] * 2
    assert [shown["ExecMainStatus"] for shown in lan.shown("big")] == ["2", "2"]
    second.write("/etc/vllm-safe/config.yaml", lan.config)
    first.run("hostname other")
    assert first.run("systemctl start vllm@big", check=False).returncode
    assert lan.told("big")[0].startswith("this machine is other, which is not one of the machines of big: gpu1, gpu2")
    first.run("hostname gpu1")


def test_a_worker_that_dies_ends_all_and_all_know_where(lan: Lan) -> None:
    first, second = lan.beds
    lan.start("big")
    lan.wait_for_all("big", "running", 240)
    assert lan.told("big") == ["ready, serving big on http://127.0.0.1:8000", "ready, serving big with gpu1, which answers"]
    lan.must_answer("big")
    listening = [line.split()[3] for line in first.out("ss -ltnpH").splitlines() if "vllm" in line.lower()]
    listening.remove("127.0.0.1:8000")  # of the API server, from which the others are forked
    assert {f"{NETWORK}.1:29500", "*:29501"} <= set(listening)
    assert {where.rpartition(":")[0] for where in listening} == {f"{NETWORK}.1", "*"}
    lan.ask_for_long("big")
    second.run(["pkill", "-KILL", "VLLM::Worker"])  # the first fails at once, and the second notices seconds later
    lan.wait_for_all("big", "auto-restart", 40)
    first_told, own = lan.told("big")
    # vLLM asks for the exit status so soon after the death that there may be none yet.
    assert re.fullmatch(r"big exited because its process VllmWorker-1 (was killed by SIGKILL|died without an error message)\.", own)
    assert first_told == f"gpu2 ended: {own}"
    assert [lan.state("big", number)["cause"] for number in (0, 1)] == ["node", "exited"]
    assert "On that machine: vllm-safe why big" in first.out("vllm-safe why big")


@pytest.mark.long
def test_a_cut_cable_ends_all_within_its_bound(lan: Lan) -> None:
    lan.start("other")
    lan.wait_for_all("other", "running", 240)
    lan.must_answer("other")
    lan.switch.cut(2)
    lan.wait_for_all("other", "auto-restart", 30 + 30)
    lan.switch.cut(2, off=False)
    silent = "has not been heard from for 30 s: it is down, or the network to it is"
    assert lan.told("other") == [f"gpu2 {silent}", f"gpu1 {silent}"]
