"""The console script. It answers --help and --version itself: importing click would triple their time."""

import os
import sys

from vllm_safe import __version__

# Each command is `command` in the module of its name. The help stands here, so that --help and TAB import none of them.
COMMANDS = {
    "check": "Check every precondition and what runs; say what to do next",
    "show": "Show what a start would run, and where each value comes from",
    "config": "Show the configuration in force, or a commented sample",
    "install": "Install vLLM into a venv of its own, or go back to the last",
    "fetch": "Download the files of a model",
    "swap": "Create, show or remove the swapfile",
    "status": "Show every model: state, progress, RAM, swap, pressure, the guard",
    "why": "Say why a model stopped last time, and what to change",
    "report": "Show what happened in a run, as a page or in the terminal",
    "drill": "Have a hog take all memory while logins are timed",
    "apply": "Apply limits and protection (systemd does it at each start)",
}

HELP = "\n".join(
    [
        "Usage: vllm-safe COMMAND [OPTION]... [ARGUMENT]...",
        "",
        "  Run a large language model on a machine that is too small for it, and still",
        "  log in. Models are in /etc/vllm-safe/config.yaml, and one is started with:",
        "  systemctl start vllm@NAME",
        "",
        "Commands:",
        *(f"  {name:<9}{text}" for name, text in COMMANDS.items()),
        "",
        "Options:",
        "  -h, --help   This text, or with a command the help of that command",
        "  --version    The version",
    ]
)


def main() -> None:
    """Run the command line of this process and exit with its code."""
    if sys.argv[1:] in (["--help"], ["-h"]):
        _say(HELP)
    elif sys.argv[1:] == ["--version"]:
        _say(f"vllm-safe {__version__}")
    else:
        try:
            from vllm_safe.cli.main import main as run
        except KeyboardInterrupt:  # loading takes long on a machine that swaps; from here on it is for `run` to say
            print("\nvllm-safe: interrupted", file=sys.stderr)
            sys.exit(130)
        sys.exit(run(sys.argv[1:]))


def _say(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `| head`: who reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own flush at the end
