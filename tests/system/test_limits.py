"""Limits and protection where they count: set by the real systemd before a start, enforced by a real kernel, there after a reboot."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.beds.machine import Machine
from tests.beds.nspawn import Nspawn
from tests.beds.vm import Virtual

# Answers on its port, and with a POST starts a child that eats all memory there is.
SERVER = """
import http.server, subprocess, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def do_POST(self):
        self.do_GET()
        subprocess.Popen([sys.executable, "-c", "x = []\\nwhile True: x.append(bytearray(b'x' * (4 << 20)))"])

http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
CONFIG = """
swap: {{size: {swap}}}
limits: {{memory_max: 160M}}
models:
  hog:
    command: [/usr/bin/python3, /opt/server.py, '8000']
    port: 8000
    limits: {{memory_max: {hog}, swap_max: 64M, tasks_max: 99}}
  neighbour:
    command: [/usr/bin/python3, /opt/server.py, '8001']
    port: 8001
  dies:
    command: [/bin/false]
    port: 8002
"""
OURS = "find /run/systemd/system.control /run/systemd/transient -name '50-*.conf' 2>/dev/null || true"
SYSTEM = ("system.slice", "user.slice", "init.scope")
EACH = ("system.slice/ssh.service", "system.slice/systemd-journald.service", "system.slice/cron.service")
NEIGHBOUR = "vllm@neighbour.service"
DROPIN = "/run/systemd/system/earlyoom.service.d/50-vllm-safe.conf"
AS_EARLYOOM = ("Nice", "OOMScoreAdjust", "RestartUSec", "StartLimitIntervalUSec")
LRU_GEN = "/sys/kernel/mm/lru_gen/enabled"


def configure(bed: Machine, *, swap: str = "none", hog: str = "160M", extra: str = "") -> None:
    bed.write("/opt/server.py", SERVER)
    bed.write("/etc/vllm-safe/config.yaml", extra + CONFIG.format(swap=swap, hog=hog))


def earlyoom_arguments(bed: Machine) -> list[str]:
    """Return the arguments with which earlyoom was really started, after systemd split its command line."""
    pid = bed.properties("earlyoom.service", "MainPID")["MainPID"]
    return bed.read(f"/proc/{pid}/cmdline").rstrip("\0").split("\0")[1:]


def status(bed: Machine, unit: str) -> dict[str, str]:
    return bed.properties(unit, "ActiveState", "Result", "StatusText", "NRestarts", "ExecMainStatus")


def start_that_fails(bed: Machine, name: str) -> dict[str, str]:
    assert bed.run(["systemctl", "start", f"vllm@{name}"], check=False).returncode != 0
    return status(bed, f"vllm@{name}.service")


@pytest.fixture(scope="module")
def bed(vm_installed: Virtual) -> Virtual:
    """1 GiB of RAM, 512 MiB of swap that the first start makes, and two models that run."""
    configure(vm_installed, swap="512M", extra="protect: {system: 150M, user: 60M, init: 20M}\n")
    vm_installed.run("systemctl start vllm@neighbour vllm@hog", timeout=400)  # systemd gives up after 5 min, and names the unit
    return vm_installed


@pytest.mark.nspawn
class TestSystemd:
    """The properties that systemd has; this bed's kernel enforces nothing."""

    @pytest.fixture(autouse=True)
    def _fresh(self, nspawn_installed: Nspawn) -> None:
        configure(nspawn_installed)
        nspawn_installed.run("systemctl stop 'vllm@*'; systemctl reset-failed", check=False)

    def test_limits_are_set_before_the_first_process_of_the_first_start(self, nspawn_installed: Nspawn) -> None:
        bed = nspawn_installed
        bed.run("systemctl start vllm@hog")
        limits = bed.properties("vllm@hog.service", "MemoryMax", "MemorySwapMax", "TasksMax", "CPUWeight", "IOWeight", "NeedDaemonReload")
        assert limits == {
            "MemoryMax": str(160 << 20),
            "MemorySwapMax": "0",  # none is on in this bed
            "TasksMax": "99",
            "CPUWeight": "10",
            "IOWeight": "1",
            "NeedDaemonReload": "no",
        }
        assert bed.properties("vllm.slice", "MemoryMax")["MemoryMax"] == str(160 << 20)

    def test_editing_the_file_and_restarting_the_model_is_enough(self, nspawn_installed: Nspawn) -> None:
        bed = nspawn_installed
        bed.run("systemctl start vllm@hog")
        configure(bed, hog="320M")
        bed.run("systemctl restart vllm@hog")
        assert bed.properties("vllm@hog.service", "MemoryMax", "NeedDaemonReload") == {
            "MemoryMax": str(320 << 20),
            "NeedDaemonReload": "no",
        }
        assert bed.properties("vllm.slice", "MemoryMax")["MemoryMax"] == str(320 << 20)

    def test_the_system_keeps_what_show_says(self, nspawn_installed: Nspawn) -> None:
        bed = nspawn_installed
        bed.run("vllm-safe apply")
        kept = {unit: int(bed.properties(unit, "MemoryMin")["MemoryMin"]) for unit in SYSTEM}
        assert all(kept.values())
        configure(bed, extra="protect: {system: 100M, user: 50M, init: 10M}\n")
        bed.run("systemctl start vllm@neighbour")
        now = [int(bed.properties(unit, "MemoryMin")["MemoryMin"]) >> 20 for unit in SYSTEM]
        assert now == [100, 50, 10]
        version = int(bed.out("systemctl --version | head -n1").split()[1])
        each = {"DefaultMemoryMin": str(10 << 20)} if version < 262 else {}  # later ones have it no more
        assert bed.properties("system.slice", "DefaultMemoryMin") == each

    def test_where_the_kernel_is_the_hosts_its_tunables_are_left_alone(self, nspawn_installed: Nspawn) -> None:
        bed = nspawn_installed
        bed.run("systemctl start vllm@hog")
        assert bed.out("systemctl is-active vllm-safe-tunables") == "active"
        assert not bed.exists("/run/vllm-safe/tunables")
        bed.run("systemctl stop vllm@hog")
        bed.wait_for(
            "it goes with the last model", lambda: "inactive" in bed.run("systemctl is-active vllm-safe-tunables", check=False).stdout
        )
        assert "vllm-safe-tunables" not in bed.failed_units()

    def test_a_second_apply_has_nothing_to_do(self, nspawn_installed: Nspawn) -> None:
        nspawn_installed.run("vllm-safe apply")
        assert "nothing to do" in nspawn_installed.out("vllm-safe apply --dry-run")

    def test_earlyoom_has_our_arguments_word_for_word_and_its_own_file_is_untouched(self, nspawn_installed: Nspawn) -> None:
        bed = nspawn_installed
        pattern = "^(VLLM::.*|[$]x|%h|x{2,3};b#)$"  # all that means something to a shell or to systemd, and that the config lets through
        configure(bed, extra=f"earlyoom: {{memory: 7.5, swap: 2, prefer: '{pattern}', avoid: '^sshd$'}}\n")
        before = bed.out("md5sum /etc/default/earlyoom")
        bed.run("vllm-safe apply")
        wanted = ["-m", "7.5", "-s", "2", "-r", "3600", "--prefer", pattern, "--avoid", "^sshd$"]
        bed.wait_for("earlyoom runs with our arguments", lambda: earlyoom_arguments(bed) == wanted, timeout=20)
        assert bed.out("md5sum /etc/default/earlyoom") == before
        pid = bed.properties("earlyoom.service", "MainPID")["MainPID"]
        bed.run("vllm-safe apply && sleep 1")
        assert bed.properties("earlyoom.service", "MainPID")["MainPID"] == pid  # unchanged arguments: not restarted

    def test_at_boot_earlyoom_starts_with_all_that_is_ours(self, nspawn_installed: Nspawn) -> None:
        """As a boot does it: /run is empty, and one transaction starts both units. The configuration may have got a mistake since."""
        bed = nspawn_installed
        for extra in ("", "earlyoom: {enabled: perhaps}\n"):
            configure(bed)
            bed.run("systemctl restart vllm-safe-protect && systemctl stop vllm-safe-protect earlyoom")
            bed.run(f"rm {DROPIN} && systemctl daemon-reload")
            configure(bed, extra=extra)
            bed.run("systemctl start vllm-safe-protect earlyoom", check=not extra)
            bed.wait_for("earlyoom runs", lambda: earlyoom_arguments(bed)[:4] == ["-m", "5", "-s", "5"], timeout=20)
            assert bed.properties("earlyoom", "DropInPaths") == {"DropInPaths": DROPIN}
            assert bed.properties("earlyoom", *AS_EARLYOOM) == dict(zip(AS_EARLYOOM, ("-20", "-100", "1s", "0"), strict=True))

    def test_switched_off_earlyoom_runs_as_debian_ships_it(self, nspawn_installed: Nspawn) -> None:
        """Arguments, priority, score, restarts: all as if the package were not there."""
        bed = nspawn_installed
        bed.run("vllm-safe apply")
        assert bed.properties("earlyoom", "DropInPaths") == {"DropInPaths": DROPIN}
        assert bed.properties("earlyoom", *AS_EARLYOOM) == dict(zip(AS_EARLYOOM, ("-20", "-100", "1s", "0"), strict=True))
        configure(bed, extra="earlyoom: {enabled: false}\n")
        bed.run("vllm-safe apply")
        bed.wait_for("earlyoom runs with the package's arguments", lambda: earlyoom_arguments(bed) == ["-r", "3600"], timeout=20)
        assert bed.properties("earlyoom", "DropInPaths", "NeedDaemonReload") == {"DropInPaths": "", "NeedDaemonReload": "no"}

    @pytest.mark.parametrize(
        ("name", "extra", "words"),
        [
            ("hog", "swap_: {}\n", "/etc/vllm-safe/config.yaml:1:1:"),
            ("hob", "", "Did you mean hog?"),
            ("hog", "protect: {system: 100%}\n", "RAM"),
        ],
    )
    def test_what_can_never_work_fails_at_once_and_says_why(self, nspawn_installed: Nspawn, name: str, extra: str, words: str) -> None:
        configure(nspawn_installed, extra=extra)
        now = start_that_fails(nspawn_installed, name)
        assert words in now["StatusText"]
        assert (now["ActiveState"], now["ExecMainStatus"], now["NRestarts"]) == ("failed", "2", "0")

    def test_a_taken_port_is_refused(self, nspawn_installed: Nspawn) -> None:
        bed = nspawn_installed
        bed.run("systemd-run --unit=squatter python3 /opt/server.py 8000")
        try:
            bed.wait_for("it listens", lambda: bed.run("curl -sf http://127.0.0.1:8000", check=False).returncode == 0)
            assert "port 8000 is already in use" in start_that_fails(bed, "hog")["StatusText"]
        finally:
            bed.run("systemctl stop squatter")

    def test_three_restarts_and_then_it_stays_down_until_a_person_starts_it(self, nspawn_installed: Nspawn) -> None:
        bed = nspawn_installed
        bed.write("/run/systemd/system/vllm@dies.service.d/fast.conf", "[Service]\nRestartSec=100ms\n")
        bed.run("systemctl daemon-reload")

        def gave_up() -> bool:
            now = status(bed, "vllm@dies.service")
            if "waiting" in now["StatusText"]:  # for minutes, before the second and the third restart: killed, that is one more death
                bed.run("systemctl kill --kill-whom=main --signal=KILL vllm@dies", check=False)
            return now["ActiveState"] == "failed"

        for _ in range(2):  # the second time by hand, which is never refused
            bed.run("systemctl start --no-block vllm@dies")
            bed.wait_for("it starts", lambda: not gave_up(), pause=0.02)
            bed.wait_for("it is given up", gave_up, timeout=30)
            now = status(bed, "vllm@dies.service")
            assert "restarted 3 times within an hour" in now["StatusText"]
            assert (now["ExecMainStatus"], now["NRestarts"]) == ("2", "4")

    def test_the_key_is_copied_for_root_alone_and_taken_away_again(self, nspawn_installed: Nspawn) -> None:
        bed = nspawn_installed
        bed.write("/etc/vllm-safe/key", "sesame\n", mode=0o600)
        bed.run("sed -i 's|    port: 8000|    port: 8000\\n    api_key_file: /etc/vllm-safe/key|' /etc/vllm-safe/config.yaml")
        bed.run("systemctl start vllm@hog")
        assert bed.out("stat -c '%U:%G %a' /run/vllm-safe/credentials/hog.api-key") == "root:root 600"
        assert "sesame" not in bed.read("/run/vllm-safe/launch/hog.json") + bed.journal()
        bed.run("chmod 644 /etc/vllm-safe/key; systemctl stop vllm@hog")
        assert "users other than root" in start_that_fails(bed, "hog")["StatusText"]
        assert not bed.exists("/run/vllm-safe/credentials/hog.api-key")

    def test_the_launch_file_is_for_root_and_the_service(self, nspawn_installed: Nspawn) -> None:
        bed = nspawn_installed
        bed.run("systemctl start vllm@hog")
        assert bed.out("stat -c '%U:%G %a' /run/vllm-safe/launch/hog.json") == "root:vllm 640"
        assert json.loads(bed.read("/run/vllm-safe/launch/hog.json"))["argv"][0] == "/usr/bin/python3"

    def test_undo_leaves_nothing_even_with_a_broken_configuration(self, nspawn_installed: Nspawn) -> None:
        bed = nspawn_installed
        bed.run("systemctl start vllm@hog && systemctl stop vllm@hog")
        bed.run("systemctl set-property --runtime system.slice CPUWeight=200")  # the admin's own
        assert bed.out(OURS)
        bed.write("/etc/vllm-safe/config.yaml", "nonsense\n\t")
        bed.run("vllm-safe apply --undo")
        assert bed.out(OURS) == "/run/systemd/system.control/system.slice.d/50-CPUWeight.conf"
        assert all(bed.properties(unit, "MemoryMin") == {"MemoryMin": "0"} for unit in SYSTEM)
        assert not any(bed.exists(path) for path in ("/var/lib/vllm-safe/earlyoom.env", DROPIN))
        assert "nothing to do" in bed.out("vllm-safe apply --undo --dry-run")
        bed.run("systemctl revert system.slice")


@pytest.mark.vm
class TestKernel:
    """The limits that the kernel enforces."""

    def test_the_cgroups_have_the_limits(self, bed: Virtual) -> None:
        folder = "/sys/fs/cgroup/vllm.slice/vllm@hog.service"
        files = {name: bed.read(f"{folder}/{name}").strip() for name in ("memory.max", "memory.swap.max", "pids.max", "memory.oom.group")}
        assert files == {
            "memory.max": str(160 << 20),
            "memory.swap.max": str(64 << 20),
            "pids.max": "99",
            "memory.oom.group": "1",
        }
        assert int(bed.read("/sys/fs/cgroup/vllm.slice/memory.max")) == 160 << 20
        kept = [int(bed.read(f"/sys/fs/cgroup/{unit}/memory.min")) >> 20 for unit in SYSTEM]
        assert kept == [150, 60, 20]

    def test_a_model_over_its_limit_dies_whole_and_alone(self, bed: Virtual) -> None:
        neighbour = bed.properties("vllm@neighbour.service", "MainPID")
        hog = bed.properties("vllm@hog.service", "InvocationID")
        bed.run("curl -sf -X POST http://127.0.0.1:8000/", timeout=60)
        bed.wait_for(
            "the hog is killed",
            lambda: bed.properties("vllm@hog.service", "Result", "NRestarts") != {"Result": "success", "NRestarts": "0"},
            timeout=300,
            pause=1,
        )
        assert bed.properties("vllm@hog.service", "Result")["Result"] == "oom-kill"
        assert "oom_group_kill 1" in bed.read("/sys/fs/cgroup/vllm.slice/memory.events")
        assert bed.run(["pgrep", "-f", "server.py 8000"], check=False).stdout == ""
        assert bed.properties("vllm@neighbour.service", "MainPID") == neighbour
        assert bed.run("curl -sf http://127.0.0.1:8001/", timeout=60).returncode == 0
        assert subprocess.run(bed.ssh("id", "-un"), check=True, capture_output=True, text=True, timeout=120).stdout == "root\n"
        assert hog["InvocationID"]

    def test_every_service_has_a_share_of_its_own_and_no_model_has(self, bed: Virtual) -> None:
        shares = {unit: int(bed.read(f"/sys/fs/cgroup/{unit}/memory.min")) >> 20 for unit in EACH}
        assert shares == dict.fromkeys(EACH, 15)
        assert bed.read(f"/sys/fs/cgroup/vllm.slice/{NEIGHBOUR}/memory.min").strip() == "0"

    def test_the_tunables_hold_while_a_model_runs_and_are_then_as_before(self, bed: Virtual) -> None:
        """Also where somebody switched it off meanwhile, and with a configuration that has become invalid."""
        assert bed.read(LRU_GEN) == "0x0007\n"
        assert bed.run("vllm-safe apply --tunables --dry-run").stdout == "nothing to do: already up to date\n"
        assert "kernel tunables while a model runs" in bed.run("vllm-safe check", check=False).stdout
        bed.run(f"echo n > {LRU_GEN}")
        assert "systemctl restart vllm-safe-tunables" in bed.run("vllm-safe check", check=False).stdout
        bed.run("systemctl restart vllm-safe-tunables", timeout=120)
        bed.run("systemctl stop vllm@hog", timeout=120)
        assert bed.read(LRU_GEN) == "0x0007\n"  # the neighbour runs
        config = bed.read("/etc/vllm-safe/config.yaml")
        bed.write("/etc/vllm-safe/config.yaml", "nonsense\n\t")
        bed.run("systemctl stop vllm@neighbour", timeout=120)
        bed.wait_for("all is as before", lambda: bed.read(LRU_GEN) == "0x0000\n", timeout=60)
        bed.write("/etc/vllm-safe/config.yaml", config)
        assert not bed.exists("/run/vllm-safe/tunables")
        bed.run("systemctl start vllm@neighbour", timeout=300)
        assert bed.read(LRU_GEN) == "0x0007\n"

    def test_no_tunable_is_changed_while_a_containers_memory_is_taken_back(self, bed: Virtual) -> None:
        """A kernel that switches its LRU then may kill the container."""
        bed.run("systemctl stop 'vllm@*'", timeout=120)
        # The tunables unit stops after the last model (StopWhenUnneeded=), and needs a calm machine to put back what it changed.
        bed.wait_for("the tunables are as before", lambda: bed.read(LRU_GEN) == "0x0000\n", timeout=60)
        bed.run("head -c 60M /dev/zero > /srv/file && sync && echo 3 > /proc/sys/vm/drop_caches", timeout=300)  # whose cache it is, pays
        # It waits for memory in each second, and leaves most of the processor to others.
        bed.run("systemd-run --unit=container --property=MemoryMax=30M sh -c 'while cat /srv/file; do sleep 1; done >/dev/null'")
        try:
            bed.run("systemctl start vllm@neighbour", timeout=300)
            assert "has been short of memory" in bed.journal("vllm-safe-tunables.service")
            assert bed.read(LRU_GEN) == "0x0000\n"
            assert bed.properties("container", "ActiveState") == {"ActiveState": "active"}
        finally:
            bed.run("systemctl stop container")
        bed.run("systemctl restart vllm-safe-tunables", timeout=120)
        assert bed.read(LRU_GEN) == "0x0007\n"

    def test_everything_is_there_after_a_reboot_before_any_model(self, bed: Virtual) -> None:
        bed.run("systemctl stop 'vllm@*'", timeout=120)
        before = earlyoom_arguments(bed)
        bed.reboot()
        assert earlyoom_arguments(bed) == before
        assert before[:4] == ["-m", "5", "-s", "5"]
        assert bed.properties("earlyoom", *AS_EARLYOOM) == dict(zip(AS_EARLYOOM, ("-20", "-100", "1s", "0"), strict=True))
        assert bed.out("cat /proc/$(systemctl show -P MainPID earlyoom)/oom_score_adj") == "-100"
        kept = [int(bed.read(f"/sys/fs/cgroup/{unit}/memory.min")) >> 20 for unit in SYSTEM]
        assert kept == [150, 60, 20]
        assert [int(bed.read(f"/sys/fs/cgroup/{unit}/memory.min")) >> 20 for unit in EACH] == [15] * len(EACH)
        protect, earlyoom = (
            int(bed.properties(unit, "ExecMainStartTimestampMonotonic")["ExecMainStartTimestampMonotonic"])
            for unit in ("vllm-safe-protect.service", "earlyoom.service")
        )
        assert protect < earlyoom
        assert bed.read(LRU_GEN) == "0x0000\n"  # no model runs

    def test_undo_takes_it_from_the_kernel(self, bed: Virtual) -> None:
        bed.run("vllm-safe apply --undo", timeout=120)
        assert [int(bed.read(f"/sys/fs/cgroup/{unit}/memory.min")) for unit in SYSTEM] == [0, 0, 0]
        assert [int(bed.read(f"/sys/fs/cgroup/{unit}/memory.min")) for unit in EACH] == [0] * len(EACH)
