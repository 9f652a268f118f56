"""Build the package, install it in a throwaway Debian, serve a tiny real model with the real vLLM, show its answer, take all of it down."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.beds import engine, tiny_model, trees
from tests.beds.machine import BedError
from tests.beds.nspawn import Nspawn

UNIT = "vllm@demo.service"
ADDRESS = "http://127.0.0.1:8000/v1"
PROMPT = "The quick brown"
ANSWER = tiny_model.SENTENCE.removeprefix(PROMPT)
LIMITS = ("MemoryMax", "MemorySwapMax", "OOMPolicy", "CPUWeight", "IOWeight", "TasksMax", "LimitNOFILE")
NAME_WIDTH, WIDTH = 66, 118


def main() -> int:
    """Run the demo. Return the exit status, which is 0 when the model gave the right answer."""
    if os.geteuid() != 0:
        print("make demo boots a container, which needs root: sudo make demo", file=sys.stderr)
        return 1
    started = time.monotonic()
    try:
        with step("build the package"):
            quietly("make", "--no-print-directory", "deb")
        with step("make a Debian 12 to throw away, with systemd (cached)"):
            trees.tree(trees.CONTAINER)
        with step("download the wheels of vLLM for the CPU (cached)"):
            wheels = engine.wheels()
        with Nspawn(binds=[wheels], network=False) as bed:
            try:
                serve(bed)
            except BedError:
                print(bed.journal(UNIT, "vllm-safe-prepare@demo.service", "vllm-safe-swap.service", lines=30), file=sys.stderr)
                raise
    except KeyboardInterrupt:
        print("\ninterrupted: nothing is left running", file=sys.stderr)
        return 130
    except (BedError, subprocess.CalledProcessError) as error:
        print(f"the demo failed: {error}", file=sys.stderr)
        return 1
    print(f"done in {time.monotonic() - started:.0f} s; the throwaway Debian is gone")
    return 0


def serve(bed: Nspawn) -> None:
    """Do what a user does, in a bed on which nothing of vllm-safe is installed."""
    with step("apt install ./vllm-safe.deb"):
        bed.install(engine.REPOSITORY / "dist/vllm-safe.deb")
    with step("edit /etc/vllm-safe/config.yaml: the model demo"):
        bed.write("/etc/vllm-safe/config.yaml", engine.CONFIG)
    with step("vllm-safe install"):
        bed.run(["vllm-safe", "install"], timeout=1800)
    with step("make a tiny real model"):
        engine.make_model(bed)
    with step("systemctl start vllm@demo"):
        bed.run(["systemctl", "start", UNIT], timeout=900)

    show("systemctl status vllm@demo", bed.run(["systemctl", "status", "--no-pager", "--lines=0", UNIT], check=False).stdout)
    (model,) = ask(bed, f"{ADDRESS}/models")["data"]
    show(f"curl {ADDRESS}/models", json.dumps({key: value for key, value in model.items() if key != "permission"}))
    question = {"model": model["id"], "prompt": PROMPT, "max_tokens": 100, "temperature": 0}
    answer = ask(bed, f"{ADDRESS}/completions", question)["choices"][0]["text"]
    show(f"curl {ADDRESS}/completions, with the prompt {PROMPT!r}", repr(answer))
    limits = " ".join(f"{name}={value}" for name, value in bed.properties(UNIT, *LIMITS).items())
    cap, kept = (bed.properties(unit, name)[name] for unit, name in (("vllm.slice", "MemoryMax"), ("system.slice", "MemoryMin")))
    together = f"all models together: MemoryMax={cap}; kept for the services of the system: MemoryMin={kept}"
    score = bed.out("cat /proc/$(pgrep --uid vllm --oldest '^VLLM::Worker')/oom_score_adj")
    heading = "systemctl show vllm@demo (this container accepts limits; in the machine of `make test` the kernel enforces them)"
    show(heading, f"{limits}; its workers: oom_score_adj={score}", together)
    print()
    with step("systemctl stop vllm@demo"):
        bed.run(["systemctl", "stop", UNIT], timeout=120)
    if answer.strip() != ANSWER.strip():
        raise BedError(f"the model knows one sentence, and this is not it: {answer!r}")


def ask(bed: Nspawn, url: str, question: dict[str, object] | None = None) -> dict[str, list[dict[str, str]]]:
    """Return the parsed answer of the server in the bed. The type covers only what the demo uses."""
    body = ["--json", "@-"] if question else []
    answered = bed.run(["curl", "--silent", "--show-error", "--fail-with-body", *body, url], stdin=json.dumps(question)).stdout
    parsed: dict[str, list[dict[str, str]]] = json.loads(answered)
    return parsed


@contextmanager
def step(name: str) -> Iterator[None]:
    """Print a step when it begins, and its duration when it has ended."""
    print(f"{name:{NAME_WIDTH}}", end="", flush=True)
    began = time.monotonic()
    try:
        yield
    except BaseException:
        print("  failed")
        raise
    print(f"{time.monotonic() - began:6.1f} s")


def show(command: str, *outputs: str) -> None:
    """Print the output of a command in the bed, no wider than a screen: a single long line is wrapped, several lines are cut."""
    print(f"\n# {command}")
    for output in outputs:
        lines = output.strip().splitlines()
        for line in textwrap.wrap(output, WIDTH) if len(lines) == 1 else lines:
            print(f"  {line[:WIDTH]}")


def quietly(*command: str) -> None:
    """Run a command of the host whose output matters only when it fails. Raises BedError with the output."""
    done = subprocess.run(command, check=False, cwd=engine.REPOSITORY, stdin=subprocess.DEVNULL, stdout=-1, stderr=-2, text=True)
    if done.returncode:
        raise BedError(f"`{' '.join(command)}` ended with {done.returncode}\n{done.stdout}")


if __name__ == "__main__":
    sys.exit(main())
