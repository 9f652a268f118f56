"""Take a server's end through the real path: the main process, the recorder, `vllm-safe why`. Runs in any checkout, with PYTHONPATH.

python live.py < CASES.json > EXPLANATIONS.json. It needs nothing of tests/, and of vllm_safe the modules as they stand since 0.3.0.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from vllm_safe.cli import main as cli
from vllm_safe.contract import launch_file, state_file
from vllm_safe.launch import launch_main as launch
from vllm_safe.launch import stop_post
from vllm_safe.record import kill_evidence, recorder, run_reader, run_recording
from vllm_safe.report import judged_run

FAKE = Path(__file__).parents[1] / "fakes/last_words.py"
RUN = "1a2b3c4d" * 4
QUIET_PORT = 7  # echo: only root can listen on it, and no machine does
MACHINE = "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\nSwapTotal: 134217728 kB\nSwapFree: 134217728 kB\n"


def main() -> None:
    """Run all cases, one after the other."""
    kill_evidence.read_journal = lambda _since: ([], True)
    kill_evidence.AGAIN = 0.0
    recorder.unit_properties = run_recording.unit_properties = lambda *_: {}  # type: ignore[attr-defined] # a name that the module imports
    stop_post.own_cgroup = lambda: None  # type: ignore[attr-defined] # a name that the module imports
    json.dump({name: take(case) for name, case in json.load(sys.stdin).items()}, sys.stdout)


def take(case: dict[str, Any]) -> dict[str, Any]:
    """Run one case. Return its explanations by the place where people read them, and the exit status of the main process."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        run_folder = _machine(root)
        code, printed = _launch(root, run_folder, case, _port() if case.get("ready") else QUIET_PORT)
        explanation = _why(root)
        last = json.loads((run_folder / "state/m.json").read_text())
        journal = [line for line in printed.splitlines() if line.startswith("vllm-safe: ")]
        return {"code": code, "status": last["text"], "journal": journal[-1].removeprefix("vllm-safe: "), "why": explanation}


def _machine(root: Path) -> Path:
    run_folder = root / "run/vllm-safe"
    for name in ("launch", "state"):
        (run_folder / name).mkdir(parents=True)
    (root / "run/systemd/units").mkdir(parents=True)
    (root / "run/systemd/units/invocation:vllm@m.service").symlink_to(RUN)
    cgroup = root / "sys/fs/cgroup/vllm.slice/vllm@m.service"
    cgroup.mkdir(parents=True)
    (cgroup / "pids.max").write_text("4096\n")
    (root / "proc/sys/kernel/random").mkdir(parents=True)
    (root / "proc/sys/kernel/random/boot_id").write_text("6f1c2d7e-0b5a-4c39-9d2e-8a7b6c5d4e3f\n")
    (root / "proc/meminfo").write_text(MACHINE)
    launch_file.LAUNCH_FOLDER, state_file.STATE_FOLDER = run_folder / "launch", run_folder / "state"
    recorder.STATE_FOLDER = Path("/run/vllm-safe/state")
    return run_folder


def _port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _launch(root: Path, run_folder: Path, case: dict[str, Any], port: int) -> tuple[int, str]:
    """Run the main process and what systemd runs after it. The recorder takes samples before and after."""
    end = ["--signal", str(case["signal"])] if "signal" in case else ["--status", str(case["status"])]
    ready = ["--ready", str(run_folder / "state/m.json")] if case.get("ready") else []
    args = {"model": "/srv/models/m", **case.get("args", {})}
    values = {
        "name": "m",
        "summary": (),
        "argv": (sys.executable, "-S", str(FAKE), str(port), case["file"], *end, *ready),
        "env": {"PATH": os.environ["PATH"], **case.get("env", {})},
        "health": f"http://127.0.0.1:{port}/health",
        "profile": "default",
        **({} if case.get("command") else {"serve_file": str(root / "serve.yaml"), "serve_args": args}),
        **case.get("launch", {}),
    }
    (run_folder / "launch/m.json").write_text(launch_file.Launch(**values).to_json())
    watch = recorder.Recorder("m", str(root / "runs"), str(root), lambda _text: None)
    now, wall = time.monotonic(), time.time()
    watch.look(now, wall)
    code = _child(root / "printed", launch.main, INVOCATION_ID=RUN)
    for second in range(1, 12):
        if second == 2:
            exit_code = {"SERVICE_RESULT": "exit-code", "EXIT_CODE": "exited", "EXIT_STATUS": str(code), "INVOCATION_ID": RUN}
            _child(root / "ended", stop_post.main, **exit_code)
        watch.look(now + second, wall + second)
    return code, (root / "printed").read_text(errors="replace")


def _child(output: Path, run: Any, **env: str) -> int:  # noqa: ANN401 - any function
    """Run a function in a process of its own. Return its exit status."""
    pid = os.fork()
    if pid == 0:
        handle = os.open(output, os.O_WRONLY | os.O_CREAT)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.environ.update(env)
        os.environ.pop("JOURNAL_STREAM", None)
        sys.argv = ["vllm-safe", "m"]
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115 - open until the process exits
        try:
            run()
        except SystemExit as error:
            sys.stderr.flush()
            os._exit(error.code if isinstance(error.code, int) else 1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _why(root: Path) -> dict[str, Any]:
    judged_run._BOOT = root / "proc/sys/kernel/random/boot_id"
    run_reader.list_runs.__defaults__ = run_reader.read_run.__defaults__ = (root / "runs",)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        cli.main(["why", "m", "--json"])
    answer: dict[str, Any] = json.loads(printed.getvalue())
    return {key: answer[key] for key in ("code", "sentence", "evidence", "changes", "hint")}


if __name__ == "__main__":
    main()
