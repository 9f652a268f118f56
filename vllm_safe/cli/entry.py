"""The console script. It handles --help and --version itself, as importing click would triple their time."""

import os
import sys

from vllm_safe import __version__

# Each command is the object `command` in the module of its name. The help is here, so that --help and TAB import no command.
COMMANDS = {
    "check": "Check preconditions and running models; say what to do next",
    "plan": "Say whether a model would start, before it is loaded",
    "show": "Show what a start would run, and where each value comes from",
    "config": "Show the configuration in force, or a commented sample",
    "install": "Install vLLM into its own venv, or go back to the last one",
    "fetch": "Download the files of a model",
    "swap": "Create, show or remove the swapfile",
    "status": "Show every model: state, progress, memory, pressure, guard",
    "top": "Watch every model and GPU on one screen",
    "why": "Show why a model last stopped, and what to change",
    "report": "Show a recorded run as a web page, or in the terminal",
    "bundle": "Write one file for an issue: plan, check, show, why, report",
    "drill": "Time logins while a hog takes all memory of a model",
    "apply": "Apply limits and protection (systemd does so at each start)",
}

HELP = "\n".join(
    [
        "Usage: vllm-safe COMMAND [OPTION]... [ARGUMENT]...",
        "",
        "  Run a large language model on a machine that is too small for it, and still",
        "  log in. Models are configured in /etc/vllm-safe/config.yaml and started with:",
        "  systemctl start vllm@NAME",
        "",
        "Commands:",
        *(f"  {name:<9}{text}" for name, text in COMMANDS.items()),
        "",
        "Options:",
        "  -h, --help   Show this help, or the help of a command",
        "  --version    Show the version",
    ]
)


def main() -> None:
    """Run the command line of this process and exit with its code."""
    if sys.argv[1:] in (["--help"], ["-h"]):
        _print(HELP)
    elif sys.argv[1:] == ["--version"]:
        _print(f"vllm-safe {__version__}")
    else:
        try:
            from vllm_safe.cli.main import main as run
        except KeyboardInterrupt:  # imports are slow on a machine that swaps; after them `run` reports it
            print("\nvllm-safe: interrupted", file=sys.stderr)
            sys.exit(130)
        sys.exit(run(sys.argv[1:]))


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that Python's own flush at exit does not fail
