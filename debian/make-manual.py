"""Write vllm-safe.1 and vllm-safe.yaml.5 into a folder: python debian/make-manual.py FOLDER.

The commands are read from the program, the settings from their table. The date is SOURCE_DATE_EPOCH, so that every build gives the same.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from vllm_safe import __version__
from vllm_safe.cli.entry import COMMANDS
from vllm_safe.cli.main import cli
from vllm_safe.config import value_types
from vllm_safe.config.profiles import PROFILES, Profile
from vllm_safe.config.settings import SECTIONS, Model, ModelLimits, Setting, settings_of
from vllm_safe.contract.default_times import DEFAULT_TIMES
from vllm_safe.contract.recorded_run import Gpu, Sample, Start
from vllm_safe.record.prometheus import render_metrics
from vllm_safe.record.run_store import MOST_RUNS

# Characters that groff would read as markup or replace by typographic ones. Text of a manual is pasted into a shell.
_LITERAL = {"\\": r"\e", "-": r"\-", "'": r"\(aq", '"': r"\(dq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti"}
_LONG = 40  # characters; a shorter text stays on one line

_DESCRIPTION = """\
Runs large language models on a machine that is too small for them, so that logins still work. `vllm-safe` prepares and explains; systemd
starts, stops and limits. Each model of `/etc/vllm-safe/config.yaml` is a service: `systemctl start vllm@NAME` serves it.

Commands that change the machine need root. With `--dry-run` they only say what they would do."""

_SYNTAX = """\
The file is YAML. A setting that is not in the file has its default. A key that is not listed here is an error. All errors are reported at
once, as FILE:LINE:COLUMN. The file must belong to root, and no other user may write it.

A size is written as `512M`, `128G` or `1.5 GiB` (K, M, G and T are powers of 1024), a share as `90%`, a time as `90s`, `15min` or `2h`.

A change counts from the next `systemctl restart vllm@NAME`. `vllm-safe check` says before that whether it can work, and
`vllm-safe show NAME` where each value comes from; `vllm-safe config` shows the same of the whole file."""

_EXAMPLE = """\
models:
  qwen72b:
    model: Qwen/Qwen2.5-72B-Instruct-GPTQ-Int8
    profile: pcie-riser
    args:
      tensor-parallel-size: 8
      max-model-len: 8192
  small:
    command: [/usr/local/bin/llama-server, --port, 8001,
              --model, /srv/models/small.gguf]
    port: 8001"""

_FIRST_MODEL = """\
editor /etc/vllm-safe/config.yaml
vllm-safe check
vllm-safe install
vllm-safe fetch qwen72b
systemctl start vllm@qwen72b"""

_METRICS = """\
With `metrics.textfile: FOLDER`, the recorder of each running model writes `vllm-safe-NAME.prom` there every 15 seconds, for the textfile
collector of Prometheus's node_exporter. Each metric has the label `model`, and the labels listed with it.
The recorder runs as user vllm-record. The start of a model gives this user write access to /var/lib/prometheus/node-exporter with an ACL.
For another folder, run `setfacl -m u:vllm-record:rwx FOLDER`, and permit it in the unit, too: `systemctl edit vllm-safe-record@.service`,
section [Service], ReadWritePaths=FOLDER."""

_EXITS = {
    "0": "Success; for `check`: no check failed.",
    "1": "Failure; for `check`: at least one check failed.",
    "2": "Wrong usage, or an error in the configuration.",
    "130": "Interrupted.",
}
_FILES = {
    "/etc/vllm-safe/config.yaml": "The configuration.",
    "/usr/share/doc/vllm-safe/examples/config.yaml": "What `vllm-safe config --sample` prints: every setting with its explanation.",
    "/var/lib/vllm-safe/engine": "The installations of vLLM: `current`, and `previous` to roll back to.",
    "/var/lib/vllm-safe/untried": "The installations that were made while no GPU answered, and were not started since.",
    "/var/lib/vllm-safe/disk-paces.json": "How fast `check --disk` found the disk of each model; `plan` foretells the load by it.",
    "/var/lib/vllm-safe/models": "The models that `fetch` downloaded. A purge of the package keeps them.",
    "/var/lib/vllm-safe/runs": f"The flight recorder's folder for each start of a model: the last {MOST_RUNS} of each, of at most 5 MB. "
    "`why` and `report` read it. It contains the output of models, so only root and the group adm can read it. It belongs to the user "
    "vllm-record. A purge deletes it.",
    "/run/vllm-safe/on-demand": "The sockets by which the gateway starts models. Only the group vllm-gateway may connect.",
    "/run/vllm-safe/gateway/gateway.json": "What the gateway knows of the models: addresses, and what they need of GPUs and RAM.",
    "/swapfile": "The swapfile, unless `swap.file` names another.",
    "/usr/share/doc/vllm-safe/grafana-dashboard.json": "A dashboard of the metrics below, to be imported into Grafana.",
    "/usr/share/doc/vllm-safe/README.md": "What vllm-safe protects from, what it does not, and what to do when something is wrong.",
}


def literal(text: str) -> str:
    """Escape text so that groff prints it unchanged, wherever in a line it is."""
    escaped = "".join(_LITERAL.get(sign, sign if sign.isascii() else rf"\[u{ord(sign):04X}]") for sign in text)
    return rf"\&{escaped}" if escaped.startswith(".") else escaped


def bold(text: str) -> str:
    """Format text that a user types. Only a long one may be broken, at a space or after |."""
    escaped = literal(text)
    return rf"\fB{escaped.replace('|', '|' + chr(92) + ':') if len(text) > _LONG else escaped.replace(' ', chr(92) + ' ')}\fR"


def prose(text: str) -> Iterator[str]:
    """Format paragraphs, in which `this` is text that a user types and *this* is emphasized."""
    for number, paragraph in enumerate(text.split("\n\n")):
        words = " ".join(paragraph.split())
        if number:
            yield ".PP"
        plain_or_not = enumerate(words.split("`"))
        yield "".join(bold(part) if odd % 2 else re.sub(r"\*(\w+)\*", r"\\fI\1\\fR", literal(part)) for odd, part in plain_or_not)


def items(entries: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Format a list of texts that a user types, each with an explanation of one or more paragraphs."""
    for tag, text in entries:
        yield from (".TP", bold(tag))
        yield from (".IP" if line == ".PP" else line for line in prose(text))


def code(text: str) -> Iterator[str]:
    """Format lines that are printed unchanged."""
    yield from (".PP", ".RS 4", ".EX", *(literal(line) for line in text.splitlines()), ".EE", ".RE")


def page(name: str, section: int, purpose: str, body: Iterable[str]) -> str:
    """Return a whole page of the manual."""
    date = datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), UTC).date()
    title = f'.TH {literal(name)} {section} {date} "vllm\\-safe {__version__}" "vllm\\-safe"'
    comment = '.\\" Made by debian/make-manual.py.'
    return "\n".join([comment, title, ".nh", ".ad l", ".SH NAME", rf"{literal(name)} \- {literal(purpose)}", *body]) + "\n"


def commands() -> Iterator[tuple[str, click.Command]]:
    """Yield every command by its full name, in the order of --help."""
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        if isinstance(command, click.Group):
            yield from ((f"{name} {part}", command.commands[part]) for part in command.commands)
        elif command:
            yield name, command


def metrics() -> Iterator[tuple[str, str]]:
    """Yield every metric that the recorder writes, with its explanation and labels.

    They are taken from what the recorder writes for a start of which every figure is known.
    """
    known: dict[str, Any] = dict.fromkeys(Sample._fields[2:], 0)
    text = render_metrics(
        Start("x", "x", 0.0, "", limits={"memory_max": 0, "swap_max": 0}),
        Sample(0.0, "ready", **known | {"gpus": (Gpu(*[0] * len(Gpu._fields)),)}),
    )
    for name, doc in re.findall(r"^# HELP (\S+) (.*)$", text, re.MULTILINE):
        values: dict[str, list[str]] = {}
        for label, value in re.findall(r',(\w+)="([^"]*)"', "\n".join(re.findall(rf"^{name}{{.*$", text, re.MULTILINE))):
            values.setdefault(label, []).append(value)
        labels = (f" `{label}`: {'its number' if label == 'gpu' else ', '.join(found)}." for label, found in values.items())
        yield name, doc + "".join(labels)


def _options(command: click.Command) -> Iterator[tuple[str, str]]:
    for option in command.params:
        if isinstance(option, click.Option):
            default = " Default: `/etc/vllm-safe/config.yaml`." if option.name == "config_path" else ""
            yield f"{', '.join(option.opts)} {option.metavar or ''}".strip(), f"{option.help}{default}"


def _usage(name: str, command: click.Command) -> str:
    given = [argument for argument in command.params if isinstance(argument, click.Argument)]
    arguments = [f"{argument.name}".upper() if argument.required else f"[{argument.name}]".upper() for argument in given]
    options = [f"[{tag.replace(', ', '|')}]" for tag, _ in _options(command)]
    return " ".join([bold(f"vllm-safe {name}"), *(literal(option).replace(" ", r"\ ") for option in options), *arguments])


def commands_page() -> str:
    """Return the page vllm-safe(1)."""
    every = dict(commands())
    times = Counter(option for command in every.values() for option in _options(command))
    common = [option for option, count in times.items() if count > 1]
    general = [("-h, --help", "Print the help of the program or of a command."), ("--version", "Print the version.")]

    def body() -> Iterator[str]:
        yield from (".SH SYNOPSIS", f"{bold('vllm-safe')} COMMAND [OPTION]... [ARGUMENT]...")
        yield from (".SH DESCRIPTION", *prose(_DESCRIPTION), ".SH COMMANDS")
        for name, command in every.items():
            yield from (".TP", _usage(name, command), *(".IP" if line == ".PP" else line for line in prose(command.help or "")))
            own = [option for option in _options(command) if times[option] == 1]
            if own:
                yield from (".RS", *items(own), ".RE")
        yield from (".SH OPTIONS", "Options of more than one command:", *items([*common, *general]))
        yield from (".SH EXIT STATUS", *items(_EXITS.items()))
        yield from (".SH FILES", *items(_FILES.items()))
        yield from (".SH METRICS", *prose(_METRICS), *items(metrics()))
        yield from (".SH EXAMPLES", "The first model, from an empty machine:", *code(_FIRST_MODEL))
        yield from (".PP", "The journal has what the model does:", *code("journalctl -u vllm@qwen72b"))
        yield from _see_also("vllm-safe.yaml(5)", "vllm@.service(8)", "earlyoom(1)", "systemd.resource-control(5)")

    return page("vllm-safe", 1, "run a large language model on a machine that is too small for it", body())


def _setting(row: Setting) -> tuple[str, str]:
    """Return a row of the table of settings, with its explanation, its valid values, and its default."""
    usual = f"Not set by default. Example: `{row.name}: {row.example}`" if row.example else f"Default: `{row.kind.write(row.default)}`."
    of_version = " The default may change with the version of vllm-safe." if row.moves else ""
    names = ", ".join(f"`{name.name}`" for name in settings_of(ModelLimits)) if row.kind is value_types.SECTION else ""
    expected = names or row.kind.expected
    return f"{row.name}:", f"{row.doc}\n\nValue: {expected}. {usual}{of_version}"


def _profile(profile: Profile) -> tuple[str, str]:
    args = [f"`{name}: {value}`" for name, value in profile.args.items()]
    env = [f"`{name}={value}`" for name, value in profile.env.items()]
    spans = {key: getattr(profile, key) for key in DEFAULT_TIMES}
    times = [f"`{name}: {value_types.SPAN.write(span)}`" for name, span in spans.items() if span is not None]
    parts = {"Environment": env, "Options": args, "Times": times}
    details = "".join(f"\n\n{name}: {', '.join(values).replace('True', 'true')}." for name, values in parts.items() if values)
    return profile.name, profile.reason + details


def settings_page() -> str:
    """Return the page vllm-safe.yaml(5)."""

    def body() -> Iterator[str]:
        yield from (".SH SYNOPSIS", bold("/etc/vllm-safe/config.yaml"), ".SH DESCRIPTION", *prose(_SYNTAX))
        for name, section in SECTIONS.items():
            yield from (f".SH SECTION {literal(name)}", *prose(section.__doc__ or ""), *items(map(_setting, settings_of(section))))
        yield from (".SH SECTION models", *prose(Model.__doc__ or ""))
        yield from items(map(_setting, settings_of(Model)))
        yield from (".SH PROFILES", *prose("A model's own settings take precedence over its `profile`."))
        yield from items(map(_profile, PROFILES.values()))
        yield from (".SH EXAMPLES", "Two models, one of which has a server other than vLLM:", *code(_EXAMPLE))
        yield from _see_also("vllm-safe(1)", "vllm@.service(8)", "systemd.resource-control(5)")

    return page("vllm-safe.yaml", 5, "the models of vllm-safe, their limits, and the memory reserved for the system", body())


def _see_also(*pages: str) -> Iterator[str]:
    yield ".SH SEE ALSO"
    for name in pages:
        title, number = name[:-3], name[-2]
        yield rf".BR \%{literal(title)} ({number}){',' if name != pages[-1] else ''}"


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vllm-safe.1").write_text(commands_page(), encoding="utf-8")
    (folder / "vllm-safe.yaml.5").write_text(settings_page(), encoding="utf-8")
