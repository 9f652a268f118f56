"""Files that are not a configuration at all: they are never read for long, and never cause a traceback."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from vllm_safe.common.errors import ConfigError
from vllm_safe.config import document, source
from vllm_safe.config.document import Mapping, Scalar, Sequence


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        document.read_document(path)
    return str(caught.value).removeprefix(f"{path}").removeprefix(":").strip()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no settings; expected sections such as `models`"),
        (b"\n\n# nothing\n", "has no settings; expected sections such as `models`"),
        (b"\x7fELF\x02\x01\x01\0\0", "1:8: a NUL byte: this is a binary file (or UTF-16); expected text in UTF-8"),
        ("swap: {}".encode("utf-16"), "1:4: a NUL byte: this is a binary file (or UTF-16); expected text in UTF-8"),
        (b"swap: {}\n# caf\xe9\n", "2:6: the byte 0xe9 is not UTF-8; expected text in UTF-8"),
        (b"a" * (source.MAX_BYTES + 1), "has 1048577 bytes; expected a configuration of at most 1048576 bytes"),
    ],
)
def test_content_that_is_no_configuration(content: bytes, message: str, file: Path) -> None:
    file.write_bytes(content)
    assert refusal(file) == message


def test_fifty_megabytes_are_not_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with file.open("wb") as stream:
        stream.truncate(50 << 20)
    monkeypatch.setattr("yaml.compose", lambda *_, **__: pytest.fail("it was parsed"))
    assert refusal(file) == "has 52428800 bytes; expected a configuration of at most 1048576 bytes"


def test_a_file_that_lies_about_its_size_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MAX_BYTES", 10)
    assert refusal(Path("/proc/self/status")) == "has 11 bytes; expected a configuration of at most 10 bytes"


def test_a_missing_file(file: Path) -> None:
    assert refusal(file) == "there is no such file; expected the configuration (`vllm-safe config --sample` prints one)"


def test_a_name_that_no_file_can_have() -> None:
    assert "cannot be read" in refusal(Path("a\0b"))
    assert "cannot be read: File name too long" in refusal(Path("a" * 300))


def test_a_file_of_somebody_else(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "open", refuse)
    assert refusal(file) == "cannot be read by this user; run the command as root"


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        assert refusal(tmp_path) == "is a folder; expected a file with settings"
        assert refusal(tmp_path / "fifo") == "is a FIFO; expected a file with settings"  # and does not wait for a writer
        assert refusal(Path("/dev/null")) == "is a device; expected a file with settings"
        assert refusal(tmp_path / "socket") == "cannot be read: No such device or address"


def test_a_link_is_followed_to_what_it_names(file: Path, tmp_path: Path) -> None:
    (tmp_path / "real.yaml").write_text("swap: {}\n")
    file.symlink_to(tmp_path / "real.yaml")
    assert document.read_document(file).mistakes == ()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert refusal(tmp_path / "loop") == "cannot be read: Too many levels of symbolic links"


@pytest.mark.parametrize(("mode", "shown"), [(0o664, "0664"), (0o666, "0666"), (0o602, "0602")])
def test_root_does_not_act_on_what_others_may_write(mode: int, shown: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("swap: {}\n")
    file.chmod(mode)
    as_root(monkeypatch, owner=0)
    assert refusal(file) == f"is writable by others than its owner (mode {shown}), but root acts on it; run: chmod go-w {file}"
    file.chmod(0o644)
    assert document.read_document(file).mistakes == ()


def test_root_does_not_act_on_what_belongs_to_another(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("swap: {}\n")
    as_root(monkeypatch, owner=1000)
    assert refusal(file) == f"belongs to uid 1000, but root acts on it; run: chown root {file}"


def test_others_may_read_what_others_may_write(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("swap: {}\n")
    file.chmod(0o666)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert document.read_document(file).mistakes == ()


def as_root(monkeypatch: pytest.MonkeyPatch, owner: int) -> None:
    """Make the process look like root's and the files like the owner's, so that the test does not need root."""
    real = os.fstat

    def fstat(descriptor: int) -> os.stat_result:
        facts = list(real(descriptor))
        facts[4] = owner
        return os.stat_result(facts)

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "fstat", fstat)


def bomb(width: int, levels: int) -> str:
    rows = ["a0: &a0 [x]"] + [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * width)}]" for level in range(1, levels)]
    return "\n".join(rows) + "\n"


def test_aliases_that_explode(file: Path) -> None:
    file.write_text(bomb(10, 30))
    assert "more than 20000 values here, with each alias (*) written out" in refusal(file)


def test_lists_that_explode_without_aliases(file: Path) -> None:
    file.write_text("a: [" + "1," * 20_000 + "]\n")
    assert "more than 20000 values here" in refusal(file)


def test_aliases_that_do_no_harm(file: Path) -> None:
    file.write_text("a: &x {k: 1}\nb: *x\n")
    root = document.read_document(file).root
    assert isinstance(root, Mapping)
    assert root.items[0][1] == root.items[1][1]


def test_nodes_know_their_place(file: Path) -> None:
    file.write_text("\ufeffswap:\n  size: 128G\nlist:\n- 'NO'\n- NO\n- 8\n")
    assert document.read_document(file).root == Mapping(
        (
            (Scalar("swap", "str", 1, 1), Mapping(((Scalar("size", "str", 2, 3), Scalar("128G", "str", 2, 9)),), 2, 3)),
            (
                Scalar("list", "str", 3, 1),
                Sequence((Scalar("NO", "str", 4, 3, quoted=True), Scalar("NO", "bool", 5, 3), Scalar("8", "int", 6, 3)), 4, 1),
            ),
        ),
        1,
        1,
    )


def test_files_of_other_systems(file: Path) -> None:
    file.write_bytes(b"swap:\r\n  size: 128G\r\n")
    root = document.read_document(file).root
    assert isinstance(root, Mapping)
    assert root.items[0][1] == Mapping(((Scalar("size", "str", 2, 3), Scalar("128G", "str", 2, 9)),), 2, 3)
