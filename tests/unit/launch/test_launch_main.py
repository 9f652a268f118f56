"""The main process with fake servers: notifications to systemd, lines for the journal, exit codes, and that no process is left."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from vllm_safe.contract.launch_file import Launch

FAKE = Path(__file__).parents[2] / "fakes" / "server.py"
REPOSITORY = FAKE.parents[2]
PATIENCE = 30  # seconds: a test that takes longer has failed
GLIBC_S_OWN = 0b11 << 31  # signals 32 and 33: a process that was started by posix_spawn(3), as make does, ignores them


class Unit:
    """A stand-in for systemd: a launch file, a notify socket, signals."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "state").mkdir()
        self.told: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(folder / "notify"))
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.port: int = server.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None
        self.output = b""

    def start(self, *told: str, before: str = "", **changes: object) -> None:
        """Start the main process with a fake server that gets these options."""
        values: dict[str, object] = {
            "name": "demo",
            "summary": (),
            "argv": (sys.executable, "-S", str(FAKE), str(self.port), *told),
            "env": {"PATH": os.environ["PATH"]},
            "health": f"http://127.0.0.1:{self.port}/health",
            "start_timeout": 60.0,
            "stop_grace": 30.0,
        }
        (self.folder / "demo.json").write_text(json.dumps(values | changes))
        self.run("demo", before=before)

    def run(self, *arguments: str, before: str = "", **env: str) -> None:
        """Start the main process with these arguments, after these lines of Python."""
        code = (
            f"{before}\nimport pathlib; import vllm_safe.contract.launch_file as plan;"
            f"plan.LAUNCH_FOLDER = folder = pathlib.Path({str(self.folder)!r});"
            "import vllm_safe.contract.state_file as state; state.STATE_FOLDER = folder / 'state';"
            "from vllm_safe.launch.launch_main import main; main()"
        )
        env |= {"NOTIFY_SOCKET": str(self.folder / "notify"), "PYTHONPATH": str(REPOSITORY), "PATH": os.environ["PATH"]}
        self.process = subprocess.Popen([sys.executable, "-c", code, *arguments], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def status(self) -> str:
        """Return the last STATUS= that was sent."""
        self._hear(0)
        return next((line[7:] for line in reversed(self.told) if line.startswith("STATUS=")), "")

    def state(self) -> dict[str, object]:
        """Return the content of the state file."""
        values: dict[str, object] = json.loads((self.folder / "state" / "demo.json").read_text())
        return values

    def wait_for(self, assignment: str) -> None:
        """Wait for a notification that begins with this text."""
        until = time.monotonic() + PATIENCE
        while not any(line.startswith(assignment) for line in self.told):
            assert time.monotonic() < until, f"never told {assignment}, but {self.told}"
            self._hear(1)

    def wait(self) -> int:
        """Wait for the end of the main process; return its exit code."""
        assert self.process
        self.output += self.process.communicate(timeout=PATIENCE)[0]
        return self.process.returncode

    def stop(self) -> int:
        """Stop the main process as systemd does."""
        assert self.process
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def close(self) -> None:
        """End the processes that a failed test left."""
        if self.process and self.process.poll() is None:
            for child in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
                os.kill(int(child), signal.SIGKILL)
            self.process.kill()
        if self.process and self.process.stdout:
            self.process.wait()
            self.process.stdout.close()
        self._socket.close()

    def _hear(self, seconds: float) -> None:
        while select.select([self._socket], [], [], seconds)[0]:
            self.told += self._socket.recv(65536).decode().split("\n")
            seconds = 0


@pytest.fixture
def unit(tmp_path: Path) -> Iterator[Unit]:
    unit = Unit(tmp_path)
    yield unit
    unit.close()


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _child(unit: Unit) -> int:
    assert unit.process
    return int(Path(f"/proc/{unit.process.pid}/task/{unit.process.pid}/children").read_text())


def test_a_stop_that_makes_room_is_recorded_as_one(unit: Unit) -> None:
    unit.start()
    unit.wait_for("READY=1")
    (unit.folder / "demo.room").write_text("coder\n")
    assert unit.stop() == 0
    assert unit.state()["cause"] == "room"
    assert unit.status() == "stopping to make room for coder: running requests have 30 s"


def test_ready_then_stopped(unit: Unit) -> None:
    unit.start(summary=("MemoryMax 1.0 GiB",))
    unit.wait_for("READY=1")
    assert unit.status() == f"ready, serving demo on http://127.0.0.1:{unit.port}"
    child = _child(unit)
    assert unit.stop() == 0
    assert unit.status() == "stopping: running requests have 30 s"
    state = unit.state()
    assert (state["phase"], state["cause"], state["name"]) == ("ended", "stopped", "demo")
    assert unit.output.startswith(b"vllm-safe: MemoryMax 1.0 GiB\n")
    assert b"vllm-safe: ready after" in unit.output
    assert b"the server has ended (killed by SIGTERM)" in unit.output
    assert not _is_alive(child)


NAMES = """
import socket, time
real = socket.getaddrinfo
def getaddrinfo(host, port, *, flags=0, **more):
    if host != b"server" or flags:
        return real(host, port, flags=flags, **more)
    time.sleep(1)  # a DNS resolver that is slow the first time, and then down
    rows = [(family, 1, 6, "", (address, port)) for family, address in ((10, "::1"), (2, "127.0.0.2"), (2, "127.0.0.1"))]
    socket.getaddrinfo = lambda *_, **__: time.sleep(1e6)
    return rows
socket.getaddrinfo = getaddrinfo
"""


def test_a_host_s_name_is_asked_for_once_and_each_of_its_addresses_is_tried(unit: Unit) -> None:
    unit.start(before=NAMES, health=f"http://server:{unit.port}/health")
    unit.wait_for("READY=1")
    assert unit.status() == f"ready, serving demo on http://server:{unit.port}"
    assert unit.stop() == 0


def test_the_server_alone_has_the_oom_score_and_the_class_at_the_disks(unit: Unit) -> None:
    unit.start(oom_score_adj=777, io_scheduling_class="idle")
    unit.wait_for("READY=1")
    assert unit.process
    assert Path(f"/proc/{_child(unit)}/oom_score_adj").read_text() == "777\n"
    assert Path(f"/proc/{unit.process.pid}/oom_score_adj").read_text() == Path("/proc/self/oom_score_adj").read_text()
    assert psutil.Process(_child(unit)).ionice().ioclass == psutil.IOPRIO_CLASS_IDLE
    assert psutil.Process(unit.process.pid).ionice() == psutil.Process().ionice()
    unit.stop()


def test_the_server_gets_its_own_environment_and_signals_only(unit: Unit) -> None:
    unit.start(argv=("sh", "-c", "env; grep -E 'SigIgn|SigBlk' /proc/self/status; exit 3"), env={"PATH": "/usr/bin:/bin", "ONE": "1"})
    assert unit.wait() == 1
    assert b"ONE=1\n" in unit.output
    assert b"NOTIFY_SOCKET" not in unit.output
    assert b"SigBlk:\t0000000000000000\n" in unit.output
    ignored = re.search(rb"SigIgn:\t([0-9a-f]+)\n", unit.output)
    assert ignored is not None
    assert int(ignored[1], 16) & ~GLIBC_S_OWN == 0


def test_the_api_key_comes_from_the_credential(unit: Unit) -> None:
    (unit.folder / "credentials").mkdir()
    (unit.folder / "credentials" / "api-key").write_text("s3cret\n")
    launch = Launch("demo", argv=("sh", "-c", 'echo "key=$VLLM_API_KEY"'), env={"PATH": "/usr/bin:/bin"}, health="http://127.0.0.1:1/")
    (unit.folder / "demo.json").write_text(launch.to_json())
    unit.run("demo", CREDENTIALS_DIRECTORY=str(unit.folder / "credentials"))
    assert unit.wait() == 1
    assert b"key=s3cret\n" in unit.output


def test_no_key_no_variable(unit: Unit) -> None:
    (unit.folder / "api-key").write_text("\n")
    launch = Launch("demo", argv=("sh", "-c", "env"), env={"PATH": "/usr/bin:/bin"}, health="http://127.0.0.1:1/")
    (unit.folder / "demo.json").write_text(launch.to_json())
    unit.run("demo", CREDENTIALS_DIRECTORY=str(unit.folder))
    assert unit.wait() == 1
    assert b"VLLM_API_KEY" not in unit.output


def test_a_key_that_cannot_be_read_is_not_left_out(unit: Unit) -> None:
    unit.start()
    unit.close()
    unit.run("demo", CREDENTIALS_DIRECTORY=str(unit.folder))
    assert unit.wait() == 1
    assert b"cannot read the API key" in unit.output


def test_the_options_are_written_for_vllm(unit: Unit) -> None:
    file = unit.folder / "serve.yaml"
    args = {"model": "/m/Ünï", "trust-remote-code": False, "served-model-name": ["demo"], "max-model-len": 8192}
    unit.start("--exit", "1", serve_file=str(file), serve_args=args)
    assert unit.wait() == 1
    assert json.loads(file.read_text(encoding="utf-8")) == args
    assert file.stat().st_mode & 0o027 == 0


def test_the_options_are_not_written_through_a_link(unit: Unit) -> None:
    (unit.folder / "target").write_text("mine")
    (unit.folder / "serve.yaml").symlink_to(unit.folder / "target")
    unit.start(serve_file=str(unit.folder / "serve.yaml"), serve_args={})
    assert unit.wait() == 1
    assert (unit.folder / "target").read_text() == "mine"


def test_a_refusal_is_one_line_a_hint_and_exit_2(unit: Unit) -> None:
    unit.start(refusal="port 8000 is in use by nginx", hint="Choose another `port` in config.yaml")
    assert unit.wait() == 2
    assert unit.output == b"vllm-safe: port 8000 is in use by nginx\n  Choose another `port` in config.yaml\n"
    assert unit.status() == "port 8000 is in use by nginx. Choose another `port` in config.yaml"
    assert (unit.state()["cause"], unit.state()["reason"]) == ("refused", unit.status())


def test_one_restart_too_many_is_no_refusal_for_what_is_configured(unit: Unit) -> None:
    unit.start(refusal="demo was restarted 3 times and ended again: it stays down", gave_up=True)
    assert unit.wait() == 2
    assert unit.state()["cause"] == "gave-up"


def test_a_refusal_that_may_not_hold_the_next_time_is_tried_again(unit: Unit) -> None:
    unit.start(refusal="systemd did not answer", again=True)
    assert unit.wait() == 1
    assert unit.status() == "systemd did not answer"


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", '{"name": "demo"}', '{"name": 1, "argv": 2, "summary": 3}'])
def test_no_launch_file_or_a_broken_one(unit: Unit, text: str | None) -> None:
    if text is not None:
        (unit.folder / "demo.json").write_text(text)
    unit.run("demo")
    assert unit.wait() == 2
    assert unit.output.startswith(b"vllm-safe: cannot read ")
    assert b"Traceback" not in unit.output


@pytest.mark.parametrize("arguments", [(), ("one", "two")])
def test_wrong_usage(unit: Unit, arguments: tuple[str, ...]) -> None:
    unit.run(*arguments)
    assert unit.wait() == 2
    assert b"takes the name of one model" in unit.output


def test_a_wrong_option_is_not_tried_again(unit: Unit) -> None:
    unit.start("--swap-space", "4")
    assert unit.wait() == 2
    assert unit.status() == "demo exited: an option is invalid: unrecognized arguments: --swap-space 4."


def test_no_such_program_is_not_tried_again(unit: Unit) -> None:
    unit.start(argv=("/no/such/program",))
    assert unit.wait() == 2
    assert "error: cannot run /no/such/program: No such file or directory" in unit.status()


@pytest.mark.parametrize("pause", [0.0, 0.2])
def test_a_kernel_without_a_process_to_spare_is_tried_again(unit: Unit, pause: float) -> None:
    refuse = "import os, errno\ndef fork(): raise BlockingIOError(errno.EAGAIN, 'Resource temporarily unavailable')\nos.fork = fork"
    unit.start(before=refuse, pause=pause)
    assert unit.wait() == 1
    assert b"Traceback" not in unit.output
    assert unit.status() == "the server could not be started: Resource temporarily unavailable"
    assert unit.state()["cause"] == "no-start"


def test_an_end_at_once_is_a_failure_even_with_0(unit: Unit) -> None:
    unit.start("--exit", "0", "--say", "RuntimeError: it is Monday")
    assert unit.wait() == 1
    assert unit.status() == "demo exited before it was ready (exit status 0): RuntimeError: it is Monday."
    assert unit.output.splitlines()[-1] == b"vllm-safe: " + unit.status().encode()


def test_the_same_error_at_an_automatic_restart_is_the_last(unit: Unit) -> None:
    """A start by a person forgets the previous error."""
    codes = []
    for restart, said in ((0, "RuntimeError: card 1 is gone"), (1, "RuntimeError: card 2 is gone"), (0, "RuntimeError: card 3 is gone")):
        unit.start("--exit", "1", "--say", said, restart=restart)
        codes.append(unit.wait())
        assert unit.process
        assert unit.process.stdout
        unit.process.stdout.close()
    assert codes == [1, 2, 1]


@pytest.mark.parametrize("state", ["{", "[]", '{"cause": "exited", "served": false, "error": 7}', '{"cause": "exited", "served": true}'])
def test_a_state_of_before_that_is_none_ends_nothing(unit: Unit, state: str) -> None:
    (unit.folder / "state/demo.json").write_text(state)
    unit.start("--exit", "1", "--say", "RuntimeError: card 2 is gone", restart=1)
    assert unit.wait() == 1


def test_the_cause_is_found_behind_any_amount_of_text(unit: Unit) -> None:
    """The text is longer than the kept log, like torch's output for the other workers."""
    stacks = "yes '  File \"/opt/engine/lib/python3.11/site-packages/vllm/x.py\", line 7, in run' | head -c 400000"
    frames = "yes 'frame #7: c10::f() + 0x4' | head -c 100000"
    script = f"{stacks}; echo; echo 'RuntimeError: CUDA error: misaligned address'; {frames}; exit 1"
    unit.start(argv=("sh", "-c", script))
    assert unit.wait() == 1
    assert "misaligned address" in unit.status()
    assert unit.state()["error"] == "RuntimeError: CUDA error: misaligned address"
    assert "misaligned" not in json.dumps(unit.state()["log"])


def test_what_steers_a_terminal_is_in_no_word_of_ours(unit: Unit) -> None:
    """For a line with a control character, journalctl shows only "blob data"."""
    unit.start(argv=("sh", "-c", r"printf 'fatal: it is \033[31mMon\001day\033]0;a title\n'; exit 1"))
    assert unit.wait() == 1
    sentence = "demo exited before it was ready (exit status 1): fatal: it is Mon?day?]0;a title."
    assert unit.status() == sentence
    assert f"vllm-safe: {sentence}\n".encode() in unit.output


def test_an_end_while_serving_is_a_failure_even_with_0(unit: Unit) -> None:
    unit.start("--serve", "1")
    assert unit.wait() == 1
    unit.wait_for("READY=1")
    assert unit.status() == "demo exited while serving (exit status 0) without an error message."
    assert str(unit.state()["reason"]).startswith("the server ended after serving for")
    assert unit.state()["served"] is True


def test_a_killed_server_is_named_so(unit: Unit) -> None:
    unit.start()
    unit.wait_for("READY=1")
    os.kill(_child(unit), signal.SIGKILL)
    assert unit.wait() == 1
    assert "killed by SIGKILL" in unit.status()


@pytest.mark.parametrize(("told", "heard"), [(["--never"], "refuses connections"), (["--status", "503"], "returns HTTP 503")])
def test_never_ready(unit: Unit, told: list[str], heard: str) -> None:
    unit.start(*told, start_timeout=1.0)
    assert unit.wait() == 1
    assert unit.status() == f"not ready within 1 s (start_timeout): http://127.0.0.1:{unit.port}/health {heard}"
    assert b"READY" not in unit.output


def test_a_mute_server_is_not_ready_and_stops_at_once(unit: Unit) -> None:
    unit.start("--mute", start_timeout=2.0)
    assert unit.wait() == 1
    assert "READY=1" not in unit.told
    assert unit.status().startswith("not ready within 2 s")


def test_a_deaf_server_is_killed_after_its_grace(unit: Unit) -> None:
    unit.start("--deaf", stop_grace=1.0)
    unit.wait_for("READY=1")
    child = _child(unit)
    assert unit.stop() == 0
    assert b"did not exit in time: killing it" in unit.output
    assert not _is_alive(child)


def test_a_swallowed_signal_is_sent_again(unit: Unit) -> None:
    unit.start("--swallow", "--load", "60", "--say", "loading")
    assert unit.process
    assert unit.process.stdout
    assert unit.process.stdout.readline() == b"loading\n"
    assert unit.stop() == 0
    assert b"swallowed SIGTERM" in unit.output
    assert b"killing it" not in unit.output


def test_much_output_neither_blocks_nor_grows(unit: Unit) -> None:
    unit.start("--print", str(200 << 20))
    assert unit.process
    assert unit.process.stdout
    got = 0
    while got < 150 << 20:
        got += len(os.read(unit.process.stdout.fileno(), 1 << 20))
    status = Path(f"/proc/{unit.process.pid}/status").read_text()
    resident = int(status.partition("VmHWM:")[2].split()[0])
    assert resident < 20 << 10  # kB
    assert unit.stop() == 0


def test_a_server_that_becomes_a_daemon_is_told_apart(unit: Unit) -> None:
    unit.start("--daemon", "--exit", "0")
    assert unit.process
    leader = unit.process.pid
    try:
        assert unit.process.wait(PATIENCE) == 1  # it does not wait for the daemon, which holds the other end of the pipe
    finally:
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(FileNotFoundError, ProcessLookupError):  # other processes may end meanwhile
                if str(unit.port).encode() in file.read_bytes().split(b"\0") and int(file.parent.name) != leader:
                    os.kill(int(file.parent.name), signal.SIGKILL)


def test_a_start_that_stands_still_is_ended_and_says_what_stood_still(unit: Unit) -> None:
    unit.start("--never", "--daemon", stall_timeout=3.0, argv=("sh", "-c", f"exec sleep 1{unit.port}"))
    assert unit.wait() == 1
    assert unit.status().startswith("no progress for ")
    assert unit.state()["cause"] == "stall"
    assert re.search(rb"vllm-safe: sleep \(\d+\): state S", unit.output)


def test_a_python_that_stands_still_prints_where(unit: Unit) -> None:
    env = {"PATH": os.environ["PATH"], "PYTHONFAULTHANDLER": "1"}
    code = "import time\ndef here_it_hangs():\n    time.sleep(1e6)\nhere_it_hangs()"
    unit.start(argv=(sys.executable, "-c", code), env=env, stall_timeout=3.0)
    assert unit.wait() == 1
    assert b"in here_it_hangs" in unit.output


def test_a_stopped_server_is_a_hang(unit: Unit) -> None:
    unit.start(hang_timeout=2.0)
    unit.wait_for("READY=1")
    child = _child(unit)
    os.kill(child, signal.SIGSTOP)
    assert unit.wait() == 1
    assert unit.state()["cause"] == "hang"
    assert not _is_alive(child)


def test_a_restart_waits_and_can_be_stopped_meanwhile(unit: Unit) -> None:
    unit.start(pause=60.0, restart=2)
    unit.wait_for("STATUS=automatic restart 2")
    assert unit.stop() == 0
    assert unit.state()["cause"] == "stopped"


def test_a_short_pause_is_waited_out(unit: Unit) -> None:
    unit.start(pause=1.0, restart=2)
    unit.wait_for("READY=1")
    assert unit.stop() == 0


# --- two machines, which are both this one


def test_a_model_on_one_machine_does_not_load_the_part_for_several() -> None:
    code = "import sys, vllm_safe.launch.launch_main; print(*(name for name in sys.modules if '.launch.node_' in name))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "\n"


NODES = ("127.0.0.1", "localhost")  # names of this machine that need no network
CLOSED = "RuntimeError: [gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:57246"
KILLED = "ERROR 11-28 21:31:21 [multiproc_executor.py:315] Worker proc VllmWorker-1 died unexpectedly (exit code: -9)"


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Unit, Unit]]:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    units = Unit(tmp_path / "first"), Unit(tmp_path / "second")
    yield units
    for unit in units:
        unit.close()


def _start_both(pair: tuple[Unit, Unit], *, scripts: tuple[str, str] | None = None) -> None:
    """Start both with fake servers, or with these scripts of a shell in place of them."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        link = server.getsockname()[1]
    for rank, unit in enumerate(pair):
        changes: dict[str, object] = {"nodes": NODES, "rank": rank, "nodes_port": link, "agreed": {}}
        changes |= {"health": ""} if rank else {}
        changes |= {"argv": ("/bin/sh", "-c", scripts[rank])} if scripts else {}
        unit.start(**changes)  # type: ignore[arg-type] # mypy takes these for `before`


def test_two_machines_are_ready_together_and_end_together(pair: tuple[Unit, Unit]) -> None:
    first, second = pair
    _start_both(pair)
    for unit in pair:
        unit.wait_for("READY=1")
    assert second.status() == "ready, serving demo with 127.0.0.1, which answers"
    assert str(first.state()["nodes"]).startswith("localhost: ")
    child = _child(second)
    assert first.stop() == 0
    assert second.wait() == 1
    assert (second.state()["cause"], second.state()["reason"]) == ("node", "127.0.0.1 was stopped")
    assert not _is_alive(child)


def test_the_machine_that_lost_a_worker_is_blamed_by_one_that_failed_before_it(pair: tuple[Unit, Unit], tmp_path: Path) -> None:
    trigger = tmp_path / "trigger"
    until = f"until [ -e {trigger} ]; do sleep 0.05; done"
    _start_both(pair, scripts=(f"{until}; echo '{CLOSED}'; exit 1", f"{until}; sleep 1.5; echo '{KILLED}'; exit 0"))
    for unit in pair:
        unit.wait_for("STATUS=starting")
    trigger.touch()
    assert [unit.wait() for unit in pair] == [1, 1]
    sentence = "demo exited because its process VllmWorker-1 was killed by SIGKILL."
    assert [unit.status() for unit in pair] == [f"localhost ended: {sentence}", sentence]
    assert [unit.state()["cause"] for unit in pair] == ["node", "exited"]
