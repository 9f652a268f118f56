"""Facts about a start: the key, earlier starts, systemd's units, the administrator's arguments for earlyoom."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from vllm_safe.common import systemctl
from vllm_safe.earlyoom.earlyoom_defaults import admin_arguments
from vllm_safe.host.start_facts import Starts, read_key, read_start_facts, read_starts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    mine = tmp_path / "keys"
    mine.mkdir(mode=0o700)
    return mine


def key_file(folder: Path, content: bytes, mode: int = 0o600) -> Path:
    path = folder / "key"
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_a_key_is_read_without_the_newline(folder: Path) -> None:
    key = read_key(key_file(folder, b"sesame\n"))
    assert (key.text, key.problem) == ("sesame", "")
    assert "sesame" not in repr(key)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620])
def test_a_key_that_others_may_read_is_refused(folder: Path, mode: int) -> None:
    key = read_key(key_file(folder, b"sesame", mode))
    assert key.text == ""
    assert f"{mode:04o}" in key.problem
    assert "chmod 600" in key.way_out


@pytest.mark.parametrize("content", [b"", b"\n", b"a b", b"a\nb\n", b"\xff\xfe", "schlüssel".encode(), b"a\0b", b"k" * 5000])
def test_what_is_no_key_is_refused(folder: Path, content: bytes) -> None:
    key = read_key(key_file(folder, content))
    assert "does not consist of one line with one key" in key.problem
    assert key.text == ""


def test_a_missing_key_comes_with_the_command_that_makes_one(folder: Path) -> None:
    key = read_key(folder / "key")
    assert "does not exist" in key.problem
    assert "openssl rand" in key.way_out


def test_a_link_is_not_followed_to_another_secret(folder: Path) -> None:
    secret = key_file(folder, b"sesame")
    (folder / "link").symlink_to(secret)
    assert read_key(folder / "link").problem
    assert read_key(folder / "link").text == ""


def test_a_pipe_or_a_folder_is_no_key_and_holds_nobody_up(folder: Path) -> None:
    os.mkfifo(folder / "pipe", 0o600)
    (folder / "folder").mkdir(mode=0o700)
    assert "not a regular file" in read_key(folder / "pipe").problem
    assert read_key(folder / "folder").problem


def test_a_key_in_a_folder_that_others_may_write_is_refused(folder: Path) -> None:
    path = key_file(folder, b"sesame")
    folder.chmod(0o777)
    assert "others could change" in read_key(path).problem


def test_the_log_of_starts_is_read_back(tmp_path: Path) -> None:
    starts = Starts(3, (1.5, 2.5))
    (tmp_path / "x").write_text(starts.to_json())
    assert read_starts(tmp_path / "x") == starts


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"counted": "many", "at": []}', '{"counted": 1, "at": 2}', "\0"])
def test_a_damaged_log_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "x").write_text(text)
    assert read_starts(tmp_path / "x") == Starts()
    assert read_starts(tmp_path / "none") == Starts()


def test_a_program_is_sought_where_the_server_will_look(tmp_path: Path) -> None:
    program = tmp_path / "serve"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    data = tmp_path / "data"
    data.write_text("")
    data.chmod(0o644)

    def is_found(server: str, path: str) -> bool:
        return read_start_facts(
            "x", server=server, path=path, host="127.0.0.1", model=None, swap_file=tmp_path, key_file=None, units={}, environment={}
        ).server

    assert is_found("serve", f"/nowhere:{tmp_path}")
    assert is_found(str(program), "/nowhere")
    assert not is_found("serve", "/nowhere")
    assert not is_found(str(data), "/nowhere")


def test_no_link_of_others_is_followed_to_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may lead into a network mount that hangs. A command may be behind one, as a virtual environment's python is; our engine is not."""
    real, looked = os.open, list[str]()

    def watched(path: str, *more: int, **options: int | None) -> int:
        looked.append(os.fspath(path))
        return real(path, *more, **options)

    planted = tmp_path / "theirs"
    planted.mkdir()
    planted.chmod(0o777)
    (tmp_path / "hangs").mkdir()
    (planted / "serve").symlink_to(tmp_path / "hangs/serve")
    monkeypatch.setattr(os, "open", watched)

    def there(model: str | None) -> bool:
        where = {"host": "127.0.0.1", "swap_file": tmp_path, "key_file": None, "units": {}, "environment": {}}
        return read_start_facts("x", server=str(planted / "serve"), path="/nowhere", model=model, **where).server  # type: ignore[arg-type]

    assert (there(None), there("org/name")) == (True, False)
    assert "theirs" in looked
    assert "hangs" not in looked


def test_whoever_may_not_look_for_a_copy_of_the_key_reads_everything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(_self: Path) -> bool:
        raise PermissionError

    monkeypatch.setattr(Path, "exists", forbidden)
    facts = read_start_facts(
        "x", server="sh", path="/bin", host="127.0.0.1", model=None, swap_file=tmp_path, key_file=None, units={}, environment={}
    )
    assert (facts.server, facts.old_key) == (True, False)


def test_units_that_systemd_does_not_know_of_do_not_shift_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "systemctl"
    fake.write_text("#!/bin/sh\nprintf 'Id=a.slice\\nMemoryMin=1\\n\\nId=b.service\\n\\nId=c.slice\\nMemoryMin=3\\nStatusText=a=b\\n'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    shown = systemctl.show_properties(["a.slice", "b.service", "c.slice"], ["Id", "MemoryMin", "StatusText"])
    assert shown["a.slice"]["MemoryMin"] == "1"
    assert "MemoryMin" not in shown["b.service"]
    assert shown["c.slice"] == {"Id": "c.slice", "MemoryMin": "3", "StatusText": "a=b"}


def test_the_environment_of_a_unit_is_read_as_systemctl_prints_it() -> None:
    """Seen under systemd 252 and 262."""
    printed = r""""A=x y" B=1 "D=quo\"te's \$HOME" "E=tab\there" "F=new\nline" "G=back\\slash" H= I=ü J=a=b"""
    assert systemctl.environment_of({"Environment": printed}) == {
        "A": "x y",
        "B": "1",
        "D": "quo\"te's $HOME",
        "E": "tab\there",
        "F": "new\nline",
        "G": "back\\slash",
        "H": "",
        "I": "ü",
        "J": "a=b",
    }
    assert systemctl.environment_of({}) == {}


def test_without_systemd_nothing_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert systemctl.show_properties(["a.slice"], ["Id"]) == {}
    fake = tmp_path / "systemctl"
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)
    assert systemctl.show_properties(["a.slice"], ["Id"]) == {}


def test_only_our_dropins_of_our_units_are_found(tmp_path: Path) -> None:
    control, transient = tmp_path / "control", tmp_path / "transient"
    ours = [control / "vllm@x.service.d/50-MemoryMax.conf", transient / "init.scope.d/50-MemoryMin.conf"]
    others = [control / "vllm@x.service.d/50-CPUQuota.conf", control / "ssh.service.d/50-MemoryMax.conf", control / "init.scope.d/x.conf"]
    for path in (*ours, *others):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    table = {"vllm@*.service": ("MemoryMax",), "init.scope": ("MemoryMin",)}
    assert set(systemctl.runtime_dropins(table, (control, transient))) == set(ours)
    assert systemctl.runtime_dropins(table, (tmp_path / "none",)) == ()


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ('EARLYOOM_ARGS="-r 3600"\n', None),
        ("# EARLYOOM_ARGS=-m 9\n", None),
        ("EARLYOOM_ARGS=\n", None),
        ("EARLYOOM_ARGS=\"-m 10 --avoid 'x'\"\n", "-m 10 --avoid 'x'"),
        ("EARLYOOM_ARGS='-m 1'\nEARLYOOM_ARGS=-m 2\n", "-m 2"),
    ],
)
def test_the_admins_arguments_are_those_that_are_not_the_packages(tmp_path: Path, text: str, arguments: str | None) -> None:
    (tmp_path / "etc/default").mkdir(parents=True)
    (tmp_path / "etc/default/earlyoom").write_text(text)
    assert admin_arguments(tmp_path) == arguments


def test_without_earlyoom_there_are_none(tmp_path: Path) -> None:
    assert admin_arguments(tmp_path) is None


@pytest.mark.parametrize(
    ("host", "addresses"), [("127.0.0.1", {"127.0.0.1"}), ("0:0:0:0:0:0:0:1", {"::1"}), ("server", {"192.0.2.7", "::1"}), ("gone", set())]
)
def test_the_addresses_of_the_host(host: str, addresses: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def look_up(name: str, port: None, *, type: int) -> list[tuple[object, ...]]:  # noqa: A002 - the name is socket's
        if name == "gone":
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        both = [address for each in ("192.0.2.7", "::1") for address in real(each, port, type=type)]
        return both if name == "server" else real(name, port, type=type)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    facts = read_start_facts(
        "x", server="sh", path="/bin", host=host, model=None, swap_file=tmp_path, key_file=None, units={}, environment={}
    )
    assert facts.addresses == addresses
