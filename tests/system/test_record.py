"""The flight recorder under the real systemd: whole runs, and what it lives through. A power cut: test_why.py."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from tests.beds.machine import Machine
from tests.beds.nspawn import Nspawn

FAKE = Path(__file__).parents[1] / "fakes" / "server.py"
RUNS = "/var/lib/vllm-safe/runs"
TEXTFILE = "/var/lib/prometheus/node-exporter"
SERVERS = {  # name -> what the fake server is told
    "good": "--say 'INFO hello' --load 4",
    "quits": "--load 2 --serve 3 --say 'ValueError: the engine has died'",
    "long": "",
    "full": "",
    "planted": "",
}
# Prints what is recorded of a model's last run with the package's own reader.
READ = """
import json, sys
from vllm_safe.record.run_reader import list_runs, read_run
runs = list_runs(sys.argv[1])
run = read_run(sys.argv[1], runs[0]) if runs else None
print(json.dumps({"runs": runs, "run": run and {
    "start": run.start._asdict(), "end": run.end and run.end._asdict(), "log": run.log,
    "phases": list(dict.fromkeys(sample.phase for sample in run.samples)), "times": [sample.time for sample in run.samples],
    "last": run.samples[-1]._asdict() if run.samples else None, "events": [[event.kind, event.text] for event in run.events]}}))
"""


def _install(bed: Machine, servers: dict[str, str]) -> None:
    bed.write("/opt/fake/server.py", FAKE.read_text())
    bed.write("/opt/read.py", READ)
    lines = ["swap: {size: none}", f"metrics: {{textfile: {TEXTFILE}}}", "models:"]
    for number, (name, told) in enumerate(servers.items()):
        command = f'[/bin/sh, -c, "exec python3 /opt/fake/server.py {8001 + number} {told}"]'
        lines += [f"  {name}:", f"    command: {command}", f"    port: {8001 + number}"]
    bed.write("/etc/vllm-safe/config.yaml", "\n".join(lines) + "\n")


def _recorded(bed: Machine, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(bed.out(["/usr/lib/vllm-safe/bin/python3", "-I", "/opt/read.py", name]))
    return found


def _ended(bed: Machine, name: str, *, runs: int = 1) -> dict[str, Any]:
    """Return the last run of `name`, once there are so many runs and the last one has ended."""

    def over() -> bool:
        found = _recorded(bed, name)
        return len(found["runs"]) >= runs and found["run"]["end"] is not None

    bed.wait_for(f"the end of run {runs} of {name}", over, timeout=60)
    run: dict[str, Any] = _recorded(bed, name)["run"]
    return run


def _recorder(bed: Machine, name: str) -> int:
    return int(bed.properties(f"vllm-safe-record@{name}.service", "MainPID")["MainPID"])


@pytest.fixture(scope="module")
def bed(nspawn_installed: Nspawn) -> Nspawn:
    _install(nspawn_installed, SERVERS)
    nspawn_installed.run(["mkdir", "--parents", TEXTFILE])
    return nspawn_installed


@pytest.mark.nspawn
def test_a_run_from_its_start_to_its_end(bed: Nspawn) -> None:
    bed.run("systemctl start vllm@good")
    main = bed.properties("vllm@good.service", "InvocationID")["InvocationID"]
    bed.wait_for("the figures for Prometheus", lambda: bed.exists(f"{TEXTFILE}/vllm-safe-good.prom"), timeout=30)
    assert 'vllm_safe_model_phase{model="good",phase="' in bed.read(f"{TEXTFILE}/vllm-safe-good.prom")
    assert bed.out(f"stat -c %a {TEXTFILE}/vllm-safe-good.prom") == "644"
    time.sleep(2)
    bed.run("systemctl stop vllm@good")
    run = _ended(bed, "good")
    assert run["start"]["run"].endswith(main[:8])
    assert run["start"]["command"] is True
    assert run["start"]["host"]["memory"] > 1 << 30
    assert run["phases"][:2] == ["starting", "ready"] or run["phases"][1:3] == ["starting", "ready"]
    assert [text for kind, text in run["events"] if kind == "phase"][:2] == ["starting", "ready"]
    assert run["end"]["cause"] == "stopped"
    assert run["end"]["result"] == "success"
    assert any("INFO hello" in line for line in run["log"])
    bed.wait_for("it goes with its model", lambda: _recorder(bed, "good") == 0, timeout=20)
    assert not bed.exists(f"{TEXTFILE}/vllm-safe-good.prom")


@pytest.mark.nspawn
def test_only_those_who_may_read_the_journal_read_it(bed: Nspawn) -> None:
    assert bed.out(f"stat -c '%U:%G %a' {RUNS} {RUNS}/good").splitlines() == ["vllm-record:adm 2750", "vllm-record:adm 2750"]
    assert set(bed.out(f"stat -c '%U:%G %a' {RUNS}/good/*/*").splitlines()) == {"vllm-record:adm 640"}


@pytest.mark.nspawn
def test_it_outlives_restarts_and_each_is_a_run(bed: Nspawn) -> None:
    bed.write("/run/systemd/system/vllm@quits.service.d/soon.conf", "[Service]\nRestartSec=4\n")  # instead of 30 s
    bed.run("systemctl daemon-reload")
    bed.run("systemctl start vllm@quits")
    recorder = _recorder(bed, "quits")
    run = _ended(bed, "quits")
    assert run["end"]["cause"] == "exited"
    assert run["end"]["result"] == "exit-code"
    assert any("the engine has died" in line for line in run["log"])
    bed.wait_for("a second run", lambda: len(_recorded(bed, "quits")["runs"]) == 2, timeout=60)
    again = _recorded(bed, "quits")["run"]
    assert again["start"]["restart"] == 1
    assert ["start", "automatic restart 1"] in again["events"]
    assert _recorder(bed, "quits") == recorder
    bed.run("systemctl stop vllm@quits")
    _ended(bed, "quits", runs=2)


@pytest.mark.nspawn
def test_killed_it_goes_on_with_the_same_run(bed: Nspawn) -> None:
    bed.run("systemctl start vllm@long")
    bed.wait_for("a sample", lambda: bool(_recorded(bed, "long")["runs"]) and bool(_recorded(bed, "long")["run"]["times"]), timeout=30)
    before, first = _recorded(bed, "long"), _recorder(bed, "long")
    bed.run(f"kill -9 {first}")
    bed.wait_for("another recorder", lambda: _recorder(bed, "long") not in {0, first}, timeout=20)
    bed.wait_for("more samples", lambda: len(_recorded(bed, "long")["run"]["times"]) > len(before["run"]["times"]), timeout=30)
    bed.run("systemctl restart vllm-safe-record@long", timeout=30)
    assert _recorded(bed, "long")["run"]["end"] is None, "the model goes on, and so does its run"
    bed.run("systemctl stop vllm@long")
    run = _ended(bed, "long")
    assert _recorded(bed, "long")["runs"] == before["runs"]
    assert run["start"]["time"] == before["run"]["start"]["time"]
    assert [kind for kind, _ in run["events"]].count("start") == 1


@pytest.mark.nspawn
def test_what_user_vllm_plants_is_not_believed(bed: Nspawn) -> None:
    state = "/run/vllm-safe/state"
    bed.run("systemctl start vllm@planted")
    bed.wait_for("the run", lambda: bool(_recorded(bed, "planted")["runs"]), timeout=30)
    run = bed.properties("vllm@planted.service", "InvocationID")["InvocationID"]
    plants = [
        f"ln -sf /etc/shadow {state}/planted.end.json",
        f"rm {state}/planted.end.json; mkfifo {state}/planted.end.json",
        f"rm {state}/planted.end.json; truncate --size=1G {state}/planted.end.json",
        f'echo \'{{"run": "{run}", "time": 1, "cause": "stopped", "reason": "a lie"}}\' > {state}/planted.end.json',
    ]
    for plant in plants:
        bed.run(["setpriv", "--reuid=vllm", "--regid=vllm", "--clear-groups", "sh", "-c", plant])
        time.sleep(2.5)
        assert _recorded(bed, "planted")["run"]["end"] is None, plant
    bed.run("systemctl stop vllm@planted")
    end = _ended(bed, "planted")["end"]
    assert end["cause"] == "stopped"
    assert "lie" not in end["reason"]


@pytest.mark.nspawn
def test_on_a_full_disk_it_says_so_once_and_goes_on_when_there_is_room(bed: Nspawn) -> None:
    bed.run(
        f"mkdir --parents {RUNS}/full && mount -t tmpfs -o size=16k tmpfs {RUNS}/full && chown vllm-record:adm {RUNS}/full && "
        f"chmod 2750 {RUNS}/full"
    )
    bed.run(f"head -c 1M /dev/zero > {RUNS}/full/filler; systemctl start vllm@full")

    def said() -> list[str]:
        return re.findall(r"cannot write to .*No space left", bed.journal("vllm-safe-record@full.service"))

    bed.wait_for("a word about it", lambda: len(said()) == 1, timeout=30)
    time.sleep(8)
    assert len(said()) == 1
    bed.run(f"rm {RUNS}/full/filler && mount -o remount,size=8M {RUNS}/full")
    bed.wait_for("it records", lambda: bool(_recorded(bed, "full")["runs"]) and bool(_recorded(bed, "full")["run"]["times"]), timeout=30)
    assert "recording has resumed" in bed.journal("vllm-safe-record@full.service")
    bed.run("systemctl stop vllm@full")
    assert _ended(bed, "full")["end"]["cause"] == "stopped"
    bed.run(f"umount {RUNS}/full", check=False)


@pytest.mark.nspawn
def test_it_has_no_powers(bed: Nspawn) -> None:
    bed.run("systemctl start vllm@long")
    status = bed.read(f"/proc/{_recorder(bed, 'long')}/status")
    user = bed.out("id -u vllm-record")
    assert re.search(rf"^Uid:\t{user}\t{user}\t{user}\t{user}$", status, re.MULTILINE)
    for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb"):
        assert re.search(rf"^Cap{kind}:\t0+$", status, re.MULTILINE), kind
    assert re.search(r"^Seccomp:\t2$", status, re.MULTILINE)
    bed.run("systemctl stop vllm@long")


@pytest.mark.nspawn
def test_runs_that_root_recorded_before_an_upgrade_are_its_own(bed: Nspawn) -> None:
    bed.run(f"systemctl start vllm@good && sleep 2 && systemctl stop vllm@good && chown -hR root:adm {RUNS}")
    before = _recorded(bed, "good")["runs"]
    bed.run("dpkg-reconfigure vllm-safe")
    assert set(bed.out(f"find {RUNS} -printf '%u:%g\\n'").splitlines()) == {"vllm-record:adm"}
    assert bed.out(f"stat -c %a {RUNS}/good") == "2750"
    bed.run("systemctl start vllm@good && sleep 2 && systemctl stop vllm@good")
    _ended(bed, "good", runs=len(before) + 1)
    assert _recorded(bed, "good")["runs"][1:] == before


@pytest.mark.nspawn
def test_a_recorder_that_ran_as_root_is_replaced_and_its_run_goes_on(bed: Nspawn) -> None:
    """As the upgrade finds it: everything is root's, and the recorder that runs too."""
    old = "/run/systemd/system/vllm-safe-record@.service.d/old.conf"
    bed.write(old, "[Service]\nUser=root\n")
    bed.run(f"systemctl daemon-reload && chown -hR root:adm {RUNS} && chown root /run/vllm-safe/gpus && systemctl start vllm@long")
    bed.wait_for("a sample", lambda: bool(_recorded(bed, "long")["run"]["times"]), timeout=30)
    before, first = _recorded(bed, "long"), _recorder(bed, "long")
    bed.run(f"rm {old} && /var/lib/dpkg/info/vllm-safe.postinst configure 0.2.0")
    bed.wait_for("another recorder", lambda: _recorder(bed, "long") not in {0, first}, timeout=30)
    bed.wait_for("more samples", lambda: len(_recorded(bed, "long")["run"]["times"]) > len(before["run"]["times"]), timeout=30)
    bed.run("systemctl stop vllm@long")
    run = _ended(bed, "long")
    assert _recorded(bed, "long")["runs"] == before["runs"]
    assert (run["end"]["cause"], [kind for kind, _ in run["events"]].count("start")) == ("stopped", 1)
