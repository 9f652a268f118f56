"""Tests of reading what is secret on a machine, and what names it and its people."""

from __future__ import annotations

import platform
import pwd
from pathlib import Path

import pytest

from vllm_safe.bundle.identity_facts import read_identity, secret_values

PEOPLE = [
    pwd.struct_passwd(("daemon", "x", 1, 1, "Daemon", "/usr/sbin", "/bin/sh")),
    pwd.struct_passwd(("alice", "x", 1000, 1000, "Alice Liddell,,,", "/srv/people/alice", "/bin/bash")),
    pwd.struct_passwd(("nobody", "x", 65534, 65534, "nobody", "/", "/usr/sbin/nologin")),
]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(pwd, "getpwall", lambda: PEOPLE)
    monkeypatch.setattr(platform, "node", lambda: "tower.lan.example")
    for name in ("LOGNAME", "USER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SUDO_USER", "bob")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/hosts").write_text("127.0.0.1 localhost\n::1 ip6-loopback\n10.0.0.7 nas-7.corp nas # c\n")
    (tmp_path / "etc/resolv.conf").write_text("nameserver 10.0.0.1\nsearch corp.example lan\n")
    (tmp_path / "etc/machine-id").write_text("0123\n")
    return tmp_path


def test_machine_and_people(root: Path) -> None:
    found = read_identity(root / "none.yaml", {}, root)
    assert found.hosts == {"tower.lan.example", "tower", "lan.example", "nas-7.corp", "nas-7", "nas", "corp.example"}
    assert found.users == {"alice", "Alice Liddell", "Alice", "Liddell", "bob"}
    assert found.homes == {"/srv/people/alice"}
    assert found.ids == {"0123"}
    assert found.secrets == frozenset()


def test_without_these_files_there_is_nothing_to_look_for(root: Path) -> None:
    found = read_identity(root / "none.yaml", {}, root / "nowhere")
    assert found.hosts == {"tower.lan.example", "tower", "lan.example"}
    assert found.ids == frozenset()


def test_secrets_of_a_configuration(root: Path) -> None:
    key = root / "key"
    key.write_text("key-in-a-file\n")
    key.chmod(0o644)
    (root / "config.yaml").write_text(
        f"engine: {{hub_token_file: {root}/missing}}\n"
        "models:\n"
        f"  x:\n    model: a/b\n    api_key_file: {key}\n"
        "    env: {MY_VALUE: unknown-value, NCCL_DEBUG: INFO, OTHER: '8000', VLLM_EXTRA_TOKEN: known-program}\n"
        "    args: {hf-token: in-args, deep: {client_secret: [deep-one]}, max-model-len: 8192}\n"
        "  y: {command: [server, --api-key, as-option, --proxy, 'http://u:in-a-url@h/']}\n"
    )
    found = read_identity(root / "config.yaml", {"FROM_DROPIN": "dropped-in", "OMP_NUM_THREADS": "four"}, root)
    assert found.secrets == {
        "key-in-a-file",
        "unknown-value",
        "known-program",
        "in-args",
        "deep-one",
        "dropped-in",
        "as-option",
        "in-a-url",
    }


@pytest.mark.parametrize("text", ["models: [", "models: {x: {env: {MY_VALUE: unknown-value}, prot: 1}}"])
def test_a_mistake_in_the_configuration_is_no_way_out(text: str, root: Path) -> None:
    (root / "config.yaml").write_text(text)
    assert read_identity(root / "config.yaml", {}, root).secrets == ({"unknown-value"} if "env" in text else frozenset())


def test_only_plain_values_and_those_of_known_programs_are_kept() -> None:
    given = {
        "A": "true",
        "B": "1.5",
        "C": "10 GB",
        "VLLM_X": "spawn",
        "PATH": "/usr/bin",
        "WANDB_X": "abc",
        "VLLM_API_KEY": "abcd",
        "LDAP_BIND": "x",
    }
    assert list(secret_values(given.items())) == ["abc", "abcd", "x"]


def test_machines_that_serve_a_model_with_this_one_are_names(root: Path) -> None:
    config = root / "config.yaml"
    config.write_text("models: {m: {model: a/b, nodes: [gpu-a, gpu-b.corp.example]}}\n")
    assert {"gpu-a", "gpu-b", "gpu-b.corp.example"} <= read_identity(config, {}, root).hosts
