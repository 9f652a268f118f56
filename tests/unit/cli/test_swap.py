"""The output and exit codes of `vllm-safe swap`, with real files and a simulated kernel."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from vllm_safe.cli import swap
from vllm_safe.cli.main import main
from vllm_safe.common import libc, run_lock
from vllm_safe.common.sizes import GIB, MIB
from vllm_safe.host.host_facts import Host, Mount, SwapArea
from vllm_safe.swap import swap_status
from vllm_safe.swap import swapfile_steps as steps
from vllm_safe.swap.swapfile_facts import read_candidate


class Machine:
    """A simulated machine with a swapfile in a real folder."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "swapfile"
        self.config = folder / "config.yaml"
        self.on: dict[str, int] = {}
        self.configure("2M")

    def configure(self, size: str) -> None:
        """Write the configuration."""
        self.config.write_text(f"swap:\n  file: {self.file}\n  size: {size}\n  keep_free: 0\n")

    def swaps(self) -> tuple[SwapArea, ...]:
        """Return the areas of /proc/swaps."""
        return tuple(SwapArea(path, "file", size - 4096, 0) for path, size in self.on.items())

    def host(self, *, behind: Path | None = None) -> Host:  # noqa: ARG002 - there is no automount
        """Return the facts about the machine."""
        return Host(memory=GIB, memory_available=GIB, swaps=self.swaps(), mounts=(Mount("/", "ext4", "/dev/sda", ("rw",)),))

    def swapon(self, path: str) -> None:
        """Stand in for the system call that turns swap on."""
        real = Path(path).resolve()
        self.on[str(real)] = real.stat().st_size

    def swapoff(self, path: str) -> None:
        """Stand in for the system call that turns swap off."""
        del self.on[str(Path(path).resolve())]

    def run(self, *words: str) -> int:
        """Run `vllm-safe swap` and return its exit code."""
        return main(["swap", *words, "--config", str(self.config)])


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(tmp_path)
    monkeypatch.setattr(libc, "swapon", machine.swapon)
    monkeypatch.setattr(libc, "swapoff", machine.swapoff)
    monkeypatch.setattr(libc, "may_swap", lambda: True)
    monkeypatch.setattr(steps, "read_swaps", machine.swaps)
    monkeypatch.setattr(run_lock, "RUN", tmp_path / "run")
    for module in (swap, swap_status):
        monkeypatch.setattr(module, "read_host", machine.host)
    monkeypatch.setattr(swap, "need_root", lambda: None)
    return machine


def test_a_dry_run_says_the_steps_of_the_run(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert machine.run("create", "--dry-run") == 0
    would = [line.removeprefix("would ") for line in capsys.readouterr().out.splitlines()]
    assert not machine.file.exists()
    assert machine.run("create") == 0
    assert capsys.readouterr().out.splitlines() == [*would, "2.0 MiB of swap are on"]
    assert machine.on == {str(machine.file): 2 * MIB}


def test_the_second_run_has_nothing_to_do(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.run("create")
    before = machine.file.stat()
    capsys.readouterr()
    assert machine.run("create") == 0
    assert capsys.readouterr().out == "2.0 MiB of swap are on\n"
    assert machine.file.stat() == before


def test_a_new_size_and_back_to_nothing(machine: Machine) -> None:
    machine.run("create")
    machine.configure("3M")
    assert machine.run("create") == 0
    assert machine.on == {str(machine.file): 3 * MIB}
    assert machine.run("remove", "--dry-run") == 0
    assert machine.on
    assert machine.run("remove") == 0
    assert not machine.on
    assert not machine.file.exists()


def test_size_none_leaves_everything(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.run("create")
    machine.configure("none")
    capsys.readouterr()
    assert machine.run("create") == 0
    assert "swap.size is none" in capsys.readouterr().out
    assert machine.on


def test_remove_leaves_a_foreign_file_and_says_so(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.file.write_text("mine")
    assert machine.run("remove") == 0
    assert capsys.readouterr().out.splitlines()[0] == f"not removed: {machine.file} (not swap space)"
    assert machine.file.read_text() == "mine"


def test_a_refusal_is_an_error_with_a_way_out_and_the_status_of_the_unit(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.file.write_text("mine")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address := str(machine.config.with_name("notify")))
        systemd.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        assert machine.run("create") == 1
        status = systemd.recv(4096).decode()
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"vllm-safe: {machine.file} exists and was not made by vllm-safe (not swap space): left as it is"
    assert said[1].startswith("  Move the file away")
    assert status == said[0].replace("vllm-safe: ", "STATUS=", 1)


def test_a_broken_config_stops_create_only(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.run("create")
    machine.config.write_text("swap: [broken")
    capsys.readouterr()
    assert machine.run("create") == 2
    assert machine.run("status") == 0
    assert "config.yaml" in capsys.readouterr().out
    assert machine.run("remove") == 0
    assert "without the configuration" in capsys.readouterr().err
    assert not machine.on
    assert read_candidate(machine.file) is None


def test_status_for_programs(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert machine.run("status", "--json") == 0
    before = json.loads(capsys.readouterr().out)
    assert before == {
        "size": 0,
        "used": 0,
        "areas": [],
        "config": {"file": str(machine.file), "size": 2 * MIB, "keep_free": "0"},
        "problem": "",
        "steps": [f"create the swapfile {machine.file} of 2.0 MiB, allocated, readable by root only", f"turn on {machine.file}"],
        "way_out": "",
    }
    machine.run("create")
    capsys.readouterr()
    machine.run("status", "--json")
    after = json.loads(capsys.readouterr().out)
    assert after["areas"] == [{"path": str(machine.file), "kind": "file", "size": 2 * MIB - 4096, "used": 0, "ours": True}]
    assert after["steps"] == []


def test_status_for_people(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.run("status")
    out = capsys.readouterr().out
    assert out.startswith("no swap is on\n")
    assert "`vllm-safe swap create` would:" in out
    machine.file.write_text("mine")
    machine.run("status")
    assert "problem: " in capsys.readouterr().out


def test_only_root_may(machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.undo()
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    for word in ("create", "remove"):
        assert machine.run(word) == 2
        assert f"sudo vllm-safe swap {word}" in capsys.readouterr().err
