"""`vllm-safe bundle` on the command line, with secrets and names planted wherever a bundle takes text from."""

from __future__ import annotations

import os
import platform
import pwd
import re
import stat
from pathlib import Path

import pytest

from tests.builders.runs import make_run, write_run
from vllm_safe.bundle.bundle_text import MOST
from vllm_safe.cli import bundle
from vllm_safe.cli.main import main
from vllm_safe.common import paths
from vllm_safe.contract.recorded_run import Event
from vllm_safe.record import run_reader

TOKEN = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz01"  # noqa: S105 - planted
API_KEY = "5f1e0c9a77b34d21"
OPENAI = "sk-proj-abcdefghijklmnopqrstu"
PASSWORD, PROXY, SPOKEN = "hunter2hunter2", "correct-horse", "open-sesame"
ENV_VALUE, DROPIN = "value-of-a-variable", "value-of-a-dropin"
PROMPT = "my grandmother's recipe"
HOST, FQDN, OTHER_HOST = "tower", "tower.corp.example", "hub.corp.example"
ALICE, FULL_NAME = "alice", "Alice Liddell"
PEM = "MIIEowIBAAKCAQEAuWz5yB7b0m3k9VqPzXr2dLh8sT1fGcJnE4aYwQoRiKtUvHxM"
ADDRESS4, ADDRESS6, MAC, MAIL = "10.1.2.3", "2001:db8::77", "52:54:00:ab:cd:ef", "alice@corp.example"
SERIAL = "GPU-12345678-9abc-def0-1234-56789abcdef0"
PLANTED = (
    TOKEN, API_KEY, OPENAI, PASSWORD, PROXY, SPOKEN, ENV_VALUE, DROPIN, PROMPT, HOST, OTHER_HOST, "corp.example", ALICE, FULL_NAME,
    "Liddell", ADDRESS4, ADDRESS6, MAC, SERIAL, PEM,
)  # fmt: skip
CONFIG = f"""\
engine:
  hub: https://{OTHER_HOST}/mirror
models:
  qwen72b:
    model: /home/{ALICE}/models/{TOKEN}/qwen
    host: {ADDRESS4}
    api_key_file: KEYFILE
    args: {{max-model-len: 8192, download-dir: /srv/people/{ALICE}/hub, additional-config: {{api_key: {PASSWORD}}}, tokenizer: {OPENAI}}}
    env: {{MY_TOKEN: {PASSWORD}, WANDB_NOTES: {ENV_VALUE}, HTTPS_PROXY: 'http://u:{PROXY}@{ADDRESS4}:3128', NCCL_DEBUG: INFO}}
  other:
    command: [/home/{ALICE}/bin/server, --upstream-password, {SPOKEN}, --upstream, 'http://{FQDN}:9000', --label, {TOKEN}]
    port: 8001
"""
LINES = (
    f"INFO api_key={API_KEY} token {TOKEN} for {ALICE} on {FQDN}",
    f"Received request cmpl-1: prompt: {PROMPT!r}, params: SamplingParams(n=1)",
    f'INFO: {ADDRESS4}:5000 - "POST /v1/completions" from [{ADDRESS6}]:80 ({MAC}) {MAIL}',
    f"File /home/{ALICE}/a/rather/long/path/on/{HOST}/that/has/to/be/broken/{'x' * 40}/{HOST}/{ALICE}/{TOKEN}/end",
    f"Authorization: Bearer {PASSWORD} {API_KEY} WANDB_NOTES {ENV_VALUE} {DROPIN} proxy {PROXY} {SPOKEN}",
    f"HTTPSConnectionPool(host='{OTHER_HOST}', port=443): {OTHER_HOST} said no",
    "-----BEGIN PRIVATE KEY-----",
    PEM,
    "-----END PRIVATE KEY-----",
    f"NVRM: Xid (PCI:0000:44:00): 79, {SERIAL}, Alice Liddell's {HOST}; Mr. Liddell",
)
KEPT = ("qwen72b", "PCI:0000:44:00", "NCCL_DEBUG", "8192", "memory_max", "max-model-len", "Xid")


def program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a machine with all of that, and change to an empty folder. Return the folder of the machine."""
    key = tmp_path / "key"
    key.write_text(f"{API_KEY}\n")
    key.chmod(0o600)
    (tmp_path / "config.yaml").write_text(CONFIG.replace("KEYFILE", str(key)))
    (tmp_path / "bin").mkdir()
    journal = "".join(f"2026-11-23T22:20:48+0000 vllm[7]: {line}\n" for line in LINES)
    (tmp_path / "journal").write_text(journal)
    program(tmp_path / "bin/journalctl", f"#!/bin/sh\ncat {tmp_path}/journal\n")
    program(tmp_path / "bin/systemctl", f"#!/bin/sh\nprintf 'Id=vllm@qwen72b.service\\nEnvironment=FROM_DROPIN={DROPIN}\\n'\n")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setattr(platform, "node", lambda: FQDN)
    person = pwd.struct_passwd((ALICE, "x", 1000, 1000, f"{FULL_NAME},,,", f"/srv/people/{ALICE}", "/bin/bash"))
    monkeypatch.setattr(pwd, "getpwall", lambda: [person])
    run = make_run(
        begun=1795472448.0,
        start={
            "args": {"hf-token": TOKEN, "tokenizer": f"/home/{ALICE}/t"},
            "env": {"MY_TOKEN": PASSWORD},
            "health": f"http://{FQDN}/health",
        },
        events=[Event(1795472450.0, "nvidia", f"the kernel logged: {LINES[-1]}")],
        end={"cause": "exited", "reason": f"{ALICE} on {HOST} {TOKEN}", "error": "\n".join(LINES), "result": "exit-code"},
        log=LINES,
    )
    write_run(run, tmp_path / "runs")
    monkeypatch.setattr(paths, "RUNS", tmp_path / "runs")
    for function in (run_reader.list_runs, run_reader.read_run):
        monkeypatch.setattr(function, "__defaults__", (tmp_path / "runs",))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def made(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str, config: str = "config.yaml") -> str:
    assert main(["bundle", *(arguments or ("qwen72b",)), "--config", str(folder / config), "-o", "-"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_nothing_that_was_planted_is_in_it(planted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = made(planted, capsys)
    unbroken = re.sub(r"\n\s*", "", text)  # what a report has broken in two is put together again
    for word in PLANTED:
        assert word.lower() not in text.lower(), word
        assert word.lower() not in unbroken.lower(), word


def test_they_would_be_in_it_if_nothing_was_removed(
    planted: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Show that the test above looks where they are."""
    monkeypatch.setattr("vllm_safe.bundle.identity.Identity.clean", lambda _, text: text)
    monkeypatch.setattr("vllm_safe.report.text_report.redact", lambda text: text)
    text = re.sub(r"\n\s*", "", made(planted, capsys))
    assert [word for word in PLANTED if word not in text] == []


def test_what_it_takes_to_help_is_in_it(planted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = made(planted, capsys)
    for word in KEPT:
        assert word in text, word
    titles = re.findall(r"^==== (.*?) \(", text, re.MULTILINE)
    before = text.partition("\n====")[0]
    assert all(re.search(rf"^  {re.escape(title)} +\d+ +\d+$", before, re.MULTILINE) for title in titles)
    assert len(titles) >= 6
    assert len(text) <= MOST
    assert "SamplingParams(n=1)" in text


def test_a_configuration_with_a_mistake_is_told_and_gives_nothing_away(planted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = (planted / "config.yaml").read_text()
    broken = broken.replace("    host:", f"    hust: {PASSWORD}\n    port: {TOKEN}\n    host:")
    broken = broken.replace("args: {", f"args: {{hf-token: {PASSWORD}, ").replace("--upstream-password", "--api-key")
    (planted / "broken.yaml").write_text(broken + f"engine2: https://someone:{PASSWORD}@{OTHER_HOST}/simple\n")
    text = made(planted, capsys, config="broken.yaml")
    assert "'hust'" in text
    assert "expected" in text
    for word in PLANTED:
        assert word.lower() not in text.lower(), word


def test_it_is_a_file_of_its_owner_alone(planted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundle", "qwen72b", "--config", str(planted / "config.yaml")]) == 0
    (file,) = (planted / "here").iterdir()
    assert re.fullmatch(r"qwen72b-bundle-\d{8}T\d{6}\.txt", file.name)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert capsys.readouterr().out == f"wrote {file.name}: read it, then paste it into the issue\n"
    assert file.read_text().startswith("vllm-safe bundle of qwen72b, ")


@pytest.mark.parametrize("made_by", ["file", "link", "dangling", "pipe"])
def test_nothing_is_overwritten_and_no_link_is_followed(made_by: str, planted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, victim = Path("x.txt"), planted / "victim"
    if made_by == "file":
        target.write_text("mine")
    elif made_by == "pipe":
        os.mkfifo(target)
    else:
        if made_by == "link":
            victim.write_text("theirs")
        target.symlink_to(victim)
    assert main(["bundle", "qwen72b", "--config", str(planted / "config.yaml"), "-o", "x.txt"]) == 1
    assert "x.txt exists" in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["x.txt"]
    assert not victim.exists() or victim.read_text() == "theirs"
    assert made_by != "file" or target.read_text() == "mine"


def test_a_model_that_there_is_not(planted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundle", "nothing", "--config", str(planted / "config.yaml"), "-o", "-"]) == 2
    assert "nothing" in capsys.readouterr().err


def test_a_model_that_is_only_recorded_or_only_configured(planted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "none: no run of other is recorded" in made(planted, capsys, "other")
    (planted / "empty.yaml").write_text("swap: {size: none}\n")
    assert "==== The last run over time" in made(planted, capsys, config="empty.yaml")


def test_a_command_that_is_there_is_run_and_one_that_is_not_is_said(
    planted: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(bundle._COMMANDS, "config", "The configuration")
    monkeypatch.setitem(bundle._COMMANDS, "guess", "A guess")
    text = made(planted, capsys)
    assert re.search(r"^  A guess +none: this version has no such command$", text, re.MULTILINE)
    assert re.search(r"^==== The configuration \(vllm-safe config qwen72b; exit code 2\)$", text, re.MULTILINE)
