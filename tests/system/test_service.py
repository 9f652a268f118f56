"""vllm@NAME.service with servers that misbehave, under the real systemd: what it says, how it ends, and that nothing is left."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.beds.nspawn import Nspawn

pytestmark = pytest.mark.nspawn

FAKE = Path(__file__).parents[1] / "fakes" / "server.py"
SERVERS = {  # name -> (what the fake server is told, other settings)
    "good": ("", ""),
    "crumbs": ("--daemon", ""),
    "deaf": ("--deaf --daemon", "stop_grace: 2s"),
    "swallows": ("--swallow --say importing --load 600", ""),
    "never": ("--never", "start_timeout: 3s"),
    "unwell": ("--status 503", "start_timeout: 3s"),
    "mute": ("--mute", "start_timeout: 7s"),
    "quits": ("--exit 0 --say 'the engine has died'", ""),
    "confused": ("--swap-space 4", ""),
    "chatty": (f"--print {100 << 20}", ""),
    "taken": ("", ""),
    "keyed": ("", "api_key_file: /root/key"),
}
PORTS = {name: 8001 + number for number, name in enumerate(SERVERS)}
# Each process of a server first leaves files where vLLM leaves some.
LITTER = "touch /dev/shm/psm_litter /tmp/vllm_dist_litter /run/vllm/$0/socket; exec python3 /opt/fake/server.py"


@pytest.fixture(scope="module")
def bed(nspawn_installed: Nspawn) -> Nspawn:
    bed = nspawn_installed
    bed.write("/opt/fake/server.py", FAKE.read_text())
    bed.write("/root/key", "s3cret\n", mode=0o600)
    lines = ["swap: {size: none}", "models:"]
    for name, (told, more) in SERVERS.items():
        command = f'[/bin/sh, -c, "{LITTER} {PORTS[name]} {told}", {name}]'
        lines += [f"  {name}:", f"    command: {command}", f"    port: {PORTS[name]}", *([f"    {more}"] if more else [])]
    bed.write("/etc/vllm-safe/config.yaml", "\n".join(lines) + "\n")
    return bed


@pytest.fixture(autouse=True)
def _tidy(bed: Nspawn) -> Iterator[None]:
    """Stop the models after each test, and check that nothing is left."""
    yield
    bed.run("systemctl stop 'vllm@*' && systemctl reset-failed 'vllm@*'", check=False)
    _nothing_is_left(bed)


def _nothing_is_left(bed: Nspawn) -> None:
    bed.wait_for("systemd removes the last of its folders", lambda: _left(bed) == "", timeout=10)


def _left(bed: Nspawn) -> str:
    """Return the processes, shared memory, temporary files and sockets of models, as the machine sees them."""
    # The recorder and the guard have folders of their own, and reasons to outlive a model.
    ours = "-path '*vllm*' -not -path '*-vllm-safe-*'"
    find = f"find /dev/shm /tmp /run/vllm /run/credentials /var/tmp -mindepth 1 \\( -user vllm -o {ours} \\)"
    return bed.out(f"pgrep --list-full --uid vllm; {find} 2>/dev/null; ls -d /sys/fs/cgroup/vllm.slice/vllm@* 2>/dev/null; true")


def _start(bed: Nspawn, name: str) -> int:
    return bed.run(["systemctl", "start", f"vllm@{name}"], check=False).returncode


def _processes(bed: Nspawn, name: str) -> list[int]:
    """Every process of the unit: the main process, then the server."""
    return [int(pid) for pid in bed.read(f"/sys/fs/cgroup/vllm.slice/vllm@{name}.service/cgroup.procs").split()]


def test_started_means_that_it_answers(bed: Nspawn) -> None:
    assert _start(bed, "good") == 0
    bed.out(f"curl --fail --silent --show-error http://127.0.0.1:{PORTS['good']}/health")
    shown = bed.model("good")
    assert shown["StatusText"] == f"ready, serving good on http://127.0.0.1:{PORTS['good']}"
    assert shown["SubState"] == "running"


def test_the_server_dies_first_and_the_main_process_last(bed: Nspawn) -> None:
    _start(bed, "good")
    main, server = _processes(bed, "good")
    assert bed.read(f"/proc/{server}/oom_score_adj").strip() == "1000"
    assert bed.read(f"/proc/{main}/oom_score_adj").strip() == "0"


def test_the_main_process_is_small(bed: Nspawn) -> None:
    _start(bed, "good")
    status = bed.read(f"/proc/{_processes(bed, 'good')[0]}/status")
    assert int(status.partition("VmHWM:")[2].split()[0]) <= 20 * 1024  # kB


def test_it_runs_as_vllm_without_any_power(bed: Nspawn) -> None:
    _start(bed, "good")
    for pid in _processes(bed, "good"):
        status = dict(line.split(":\t", 1) for line in bed.read(f"/proc/{pid}/status").splitlines() if ":\t" in line)
        assert status["Uid"].split()[0] == bed.out("id -u vllm")
        assert {status[kind] for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2"


def test_its_shared_memory_is_its_own_and_as_large_as_usual(bed: Nspawn) -> None:
    _start(bed, "good")
    inside = f"nsenter --mount --target {_processes(bed, 'good')[1]}"
    assert bed.out(f"{inside} ls /dev/shm") == "psm_litter"
    assert bed.out("ls /dev/shm") == ""
    size = int(bed.out(f"{inside} df --output=size -B1 /dev/shm | tail -1"))
    assert size > 0.45 * int(bed.out("awk '/MemTotal/ {printf \"%d\", $2 * 1024}' /proc/meminfo"))


def test_the_exposure_is_low(bed: Nspawn) -> None:
    _start(bed, "good")
    assert float(bed.out("systemd-analyze security --no-pager vllm@good | tail -1").split(": ")[1].split()[0]) <= 2.5


def test_systemd_knows_every_key(bed: Nspawn) -> None:
    _start(bed, "good")
    complaints = bed.out("journalctl --boot --no-pager | grep -iE 'unknown|ignoring|invalid' | grep vllm || true").splitlines()
    # Complaints about what the container's cgroups lack (pids.max) are not about the units.
    assert [line for line in complaints if "for control group" not in line] == []


def test_the_key_reaches_the_server_and_nobody_else(bed: Nspawn) -> None:
    assert _start(bed, "keyed") == 0
    _, server = _processes(bed, "keyed")
    assert "VLLM_API_KEY=s3cret\0" in bed.read(f"/proc/{server}/environ")
    assert "s3cret" not in bed.out("cat /proc/[0-9]*/cmdline | tr '\\0' ' '; journalctl --boot --no-pager; systemctl show vllm@keyed")
    assert bed.run("setpriv --reuid=65534 --clear-groups cat /run/credentials/vllm@keyed.service/api-key", check=False).returncode != 0


def test_a_wrong_option_fails_at_once_and_is_not_tried_again(bed: Nspawn) -> None:
    assert _start(bed, "confused") != 0
    shown = bed.model("confused")
    assert (shown["ActiveState"], shown["ExecMainStatus"]) == ("failed", "2")
    assert "unrecognized arguments: --swap-space 4" in shown["StatusText"]


def test_a_taken_port_fails_at_once_and_is_not_tried_again(bed: Nspawn) -> None:
    port = PORTS["taken"]
    bed.run(f"systemd-run --unit=other python3 -m http.server --bind 127.0.0.1 {port}")
    bed.wait_for("the other server listens", lambda: bed.run(f"curl -s http://127.0.0.1:{port}", check=False).returncode == 0)
    assert _start(bed, "taken") != 0
    bed.run("systemctl stop other")
    shown = bed.model("taken")
    assert (shown["ActiveState"], shown["ExecMainStatus"]) == ("failed", "2")
    assert shown["StatusText"].startswith(f"port {port} is already in use")
    assert _start(bed, "taken") == 0  # a person may try again at once


def test_a_model_that_is_not_configured(bed: Nspawn) -> None:
    assert _start(bed, "god") != 0
    assert bed.model("god")["StatusText"] == "there is no model god in /etc/vllm-safe/config.yaml. Did you mean good?"


@pytest.mark.parametrize(
    ("name", "heard"), [("never", "refuses connections"), ("unwell", "returns HTTP 503"), ("mute", "does not answer within 5 s")]
)
def test_one_that_is_never_ready_is_ended_and_tried_again(bed: Nspawn, name: str, heard: str) -> None:
    assert _start(bed, name) != 0
    shown = bed.model(name)
    assert shown["SubState"] == "auto-restart"
    assert shown["StatusText"].startswith("not ready within ")
    assert shown["StatusText"].endswith(heard)
    _nothing_is_left(bed)


def test_one_that_ends_before_it_is_ready_is_tried_again(bed: Nspawn) -> None:
    assert _start(bed, "quits") != 0
    shown = bed.model("quits")
    assert shown["SubState"] == "auto-restart"
    assert (
        shown["StatusText"]
        == 'quits exited before it was ready (exit status 0) without an error message; its last line was "the engine has died".'
    )


@pytest.mark.parametrize("who", ["the server", "the main process"])
def test_a_killed_process_ends_everything_and_it_is_tried_again(bed: Nspawn, who: str) -> None:
    _start(bed, "crumbs")
    main, server, daemon = _processes(bed, "crumbs")
    bed.run(["kill", "-KILL", str(main if who == "the main process" else server)])
    bed.wait_for("systemd waits to start it again", lambda: bed.model("crumbs")["SubState"] == "auto-restart")
    assert not any(bed.exists(f"/proc/{pid}") for pid in (main, server, daemon))
    _nothing_is_left(bed)


def test_stopping_a_deaf_server_takes_its_grace_and_little_more(bed: Nspawn) -> None:
    _start(bed, "deaf")
    start = time.monotonic()
    bed.run("systemctl stop vllm@deaf")
    assert time.monotonic() - start < 2 + 5  # the bound that is promised, not a measurement
    assert "killing it" in bed.journal("vllm@deaf")
    assert bed.model("deaf")["Result"] == "success"


def test_stopping_one_that_swallows_the_signal_while_loading(bed: Nspawn) -> None:
    bed.run("systemctl start --no-block vllm@swallows")
    bed.wait_for("it loads", lambda: "importing" in bed.journal("vllm@swallows"))
    bed.run("systemctl stop vllm@swallows")
    journal = bed.journal("vllm@swallows")
    assert "swallowed SIGTERM" in journal
    assert "the server has ended (killed by SIGTERM)" in journal


def test_a_main_process_that_hangs_is_ended_by_systemd(bed: Nspawn) -> None:
    dropin = "/run/systemd/system/vllm@good.service.d/watchdog.conf"
    bed.write(dropin, "[Service]\nWatchdogSec=3\n")
    bed.run("systemctl daemon-reload")
    try:
        assert _start(bed, "good") == 0
        time.sleep(5)
        assert bed.model("good")["SubState"] == "running"  # it is fed
        bed.run(["kill", "-STOP", bed.model("good")["MainPID"]])
        bed.wait_for("systemd waits to start it again", lambda: bed.model("good")["SubState"] == "auto-restart")
        shown = bed.model("good")
        assert shown["Result"] == "watchdog"
        assert "WatchdogSec=" in shown["StatusText"]  # no stale "ready"
        assert json.loads(bed.read("/run/vllm-safe/state/good.end.json"))["result"] == "watchdog"
        _nothing_is_left(bed)
    finally:
        bed.run(f"rm {dropin}; systemctl daemon-reload")


def test_retries_wait_ever_longer_and_then_it_stays_down(bed: Nspawn) -> None:
    dropin = "/run/systemd/system/vllm@quits.service.d/soon.conf"
    bed.write(dropin, "[Service]\nRestartSec=4\n")  # instead of 30 s; the recorder looks each second, and writes the end of one run first
    bed.run("systemctl daemon-reload")
    try:
        _start(bed, "quits")
        bed.wait_for("the second restart waits", lambda: "automatic restart 2" in bed.model("quits")["StatusText"])
        assert bed.model("quits")["ActiveState"] == "activating"
        now = float(bed.read("/proc/uptime").split()[0])
        bed.write("/run/vllm-safe/starts/quits", json.dumps({"counted": 2, "at": [now - 20, now - 10, now]}))  # as after three
        bed.run(["kill", "-KILL", bed.model("quits")["MainPID"]])
        bed.wait_for("it stays down", lambda: bed.model("quits")["ActiveState"] == "failed")
        shown = bed.model("quits")
        assert shown["ExecMainStatus"] == "2"
        assert "restarted 3 times within an hour" in shown["StatusText"]
        told = ("quits stays down after ", "was killed by SIGKILL")  # what ended it, not that it was refused
        bed.wait_for("why says it", lambda: all(words in bed.run("vllm-safe why quits", check=False).stdout for words in told))
        start = time.monotonic()
        bed.run("systemctl start --no-block vllm@quits")  # a person does not wait
        bed.wait_for("it was tried at once", lambda: "the engine has died" in bed.model("quits")["StatusText"], timeout=20)
        assert time.monotonic() - start < 20
    finally:
        bed.run(f"rm {dropin}; systemctl daemon-reload")


def test_a_flood_of_output_harms_nobody(bed: Nspawn) -> None:
    assert _start(bed, "chatty") == 0
    status = bed.read(f"/proc/{_processes(bed, 'chatty')[0]}/status")
    assert int(status.partition("VmHWM:")[2].split()[0]) <= 20 * 1024  # kB


def test_an_edited_file_and_a_restart_are_enough(bed: Nspawn) -> None:
    _start(bed, "good")
    assert bed.out(f"ionice -p {_processes(bed, 'good')[1]}").startswith("best-effort")
    config = bed.read("/etc/vllm-safe/config.yaml")
    try:
        bed.write("/etc/vllm-safe/config.yaml", config + "limits: {tasks_max: 123, oom_score_adjust: 321, io_scheduling_class: idle}\n")
        bed.run("systemctl restart vllm@good")
        assert bed.properties("vllm@good.service", "TasksMax") == {"TasksMax": "123"}
        server = _processes(bed, "good")[1]
        assert bed.read(f"/proc/{server}/oom_score_adj").strip() == "321"
        assert bed.out(f"ionice -p {server}") == "idle"
    finally:
        bed.write("/etc/vllm-safe/config.yaml", config)


def test_stopping_the_target_stops_every_model(bed: Nspawn) -> None:
    _start(bed, "good")
    bed.run("systemctl start vllm.target && systemctl stop vllm.target")
    assert bed.model("good")["ActiveState"] == "inactive"


DROPIN = """[Service]
Environment="GREETING=good day, %i" OMP_NUM_THREADS=3 MINE=drop-in NO_COLOR=0
Environment=INVOCATION_ID=1
EnvironmentFile=-/etc/default/elsewhere
"""


def test_a_drop_in_of_the_admin(bed: Nspawn) -> None:
    """Its variables reach the server, and systemd does not call the unit changed because of what `apply` set."""
    config = bed.read("/etc/vllm-safe/config.yaml")
    bed.write("/etc/vllm-safe/config.yaml", config.replace("\n  crumbs:", "\n    env: {MINE: config}\n  crumbs:"))
    bed.write("/etc/systemd/system/vllm@.service.d/override.conf", DROPIN)
    bed.run("vllm-safe apply --undo && systemctl daemon-reload")
    try:
        started = bed.run("systemctl start vllm@good")
        asked = bed.run("systemctl status vllm@good vllm.slice; systemctl restart vllm@good; systemctl cat vllm@good >/dev/null")
        assert "changed on disk" not in started.stderr + asked.stdout + asked.stderr
        assert bed.properties("vllm@good", "NeedDaemonReload") == {"NeedDaemonReload": "no"}
        server = bed.out(f"pgrep --parent {bed.properties('vllm@good', 'MainPID')['MainPID']}")
        values = dict(line.split("=", 1) for line in bed.out(f"tr '\\0' '\\n' < /proc/{server}/environ").splitlines())
        assert values["GREETING"] == "good day, good"
        assert (values["OMP_NUM_THREADS"], values["NO_COLOR"], values["MINE"]) == ("3", "0", "config")
        assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "CREDENTIALS_DIRECTORY", "JOURNAL_STREAM"} & set(values)
        shown = {line.split()[0]: line for line in bed.out("vllm-safe show good").splitlines() if line.strip()}
        assert shown["GREETING"].endswith("Environment= of vllm@good.service (systemctl cat vllm@good.service)")
        assert shown["MINE"].rpartition(" ")[2].startswith("/etc/vllm-safe/config.yaml:")
        checked = bed.run("vllm-safe check", check=False).stdout
        assert "EnvironmentFile= of vllm@good.service has no effect on the server" in checked
    finally:
        bed.run("rm -r /etc/systemd/system/vllm@.service.d && systemctl daemon-reload")
        bed.write("/etc/vllm-safe/config.yaml", config)
