"""Any content of the file gives a Config or a ConfigError, and data stays data."""

from __future__ import annotations

import json
import re
import shlex
import string
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from vllm_safe.common.errors import ConfigError
from vllm_safe.config.reader import load
from vllm_safe.config.settings import SECTIONS, Config, Model, settings_of

# All examples of a test use one file; hypothesis warns about that, hence the suppressed health check.
fuzz = settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])

KEYS = [*SECTIONS, "models", *(row.name for section in (*SECTIONS.values(), Model) for row in settings_of(section))]
HOSTILE = [
    "$(reboot)",
    "; id",
    "%n",
    "%i",
    "a\nb",
    "'",
    '"',
    "\\",
    "`id`",
    "${HOME}",
    "-rf",
    "--port",
    "a b",
    "\t",
    "#x",
    "[",
    "{",
    "é",
    "\x85",
    "\u2028",
]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from([*HOSTILE, "128G", "90%", "none", "auto", "a/b", "/x", "1:30"]),
    st.text(),
)
keys = st.one_of(st.sampled_from(KEYS), st.text())
trees = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=5), max_leaves=30)
texts = st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))


def result(content: bytes, folder: Path) -> Config | ConfigError:
    file = folder / "config.yaml"
    file.write_bytes(content)
    try:
        return load(file)
    except ConfigError as error:
        return error


@fuzz
@given(content=st.binary(max_size=300))
def test_any_bytes(content: bytes, tmp_path: Path) -> None:
    assert isinstance(result(content, tmp_path), Config | ConfigError)


@fuzz
@given(content=st.text(st.sampled_from("ab:-?[]{},&*#!|>%@`\"'\\ \n\t0~<=."), max_size=80))
@example(content="a: &a {b: &b [*a]}")
@example(content="? [a]\n: b")
@example(content="a: !!binary x")
@example(content="a: !!set {x}")
@example(content="=: =")
@example(content="!!python/name:os.system ''")
def test_any_yaml_signs(content: str, tmp_path: Path) -> None:
    assert isinstance(result(content.encode(), tmp_path), Config | ConfigError)


@fuzz
@given(tree=st.dictionaries(keys, trees, max_size=6))
def test_any_tree(tree: dict[str, object], tmp_path: Path) -> None:
    """Write the tree as JSON, which is YAML."""
    outcome = result(json.dumps(tree).encode(), tmp_path)
    assert isinstance(outcome, Config | ConfigError)
    for line in str(outcome).splitlines() if isinstance(outcome, ConfigError) else ():
        assert line.isprintable()


@fuzz
@given(values=st.dictionaries(st.sampled_from(KEYS), trees, max_size=8))
def test_any_model(values: dict[str, object], tmp_path: Path) -> None:
    assert isinstance(result(json.dumps({"models": {"m": values}}).encode(), tmp_path), Config | ConfigError)


@fuzz
@given(section=st.sampled_from([*SECTIONS]), values=st.dictionaries(st.sampled_from(KEYS), scalars, max_size=8))
def test_any_section(section: str, values: dict[str, object], tmp_path: Path) -> None:
    assert isinstance(result(json.dumps({section: values}).encode(), tmp_path), Config | ConfigError)


@fuzz
@given(words=st.lists(texts, max_size=5), variable=texts, option=texts)
@example(words=HOSTILE, variable="$(reboot)\n; id", option="%n '\"")
def test_data_comes_through_unchanged(words: list[str], variable: str, option: str, tmp_path: Path) -> None:
    assume(not re.fullmatch(r"-?[0-9]+(\.[0-9]+)?[eE][0-9]+", option))  # safe_dump writes it without quotes, and it is a number in JSON
    text = {
        "models": {
            "command": {"command": ["prog", *words], "env": {"A": variable}},
            "vllm": {"model": "a/b", "port": 8001, "args": {"x": option, "y": [option], "z": {option: option}}},
        }
    }
    outcome = result(yaml.safe_dump(text).encode(), tmp_path)
    if isinstance(outcome, ConfigError):
        assert any(word.split("=")[0] == "--api-key" for word in words)
        return
    assert outcome.models["command"].command == ("prog", *words)
    assert outcome.models["command"].env == {"A": variable}
    assert outcome.models["vllm"].args == {"x": option, "y": [option], "z": {option: option}}


names = st.one_of(
    st.from_regex(r"[A-Za-z0-9._-]{1,70}", fullmatch=True),
    st.tuples(st.text(max_size=4), st.sampled_from([*HOSTILE, "/", ";", "@", ":", "\0", "\x1b"]), st.text(max_size=4)).map("".join),
    st.text(st.characters(exclude_categories=["Cs"])),
)


@fuzz
@given(name=names)
def test_a_name_that_is_taken_is_one_that_systemd_and_a_shell_take_as_it_is(name: str, tmp_path: Path) -> None:
    """Check that no character of the name is special in a unit's name, its specifiers, a path, a shell or an environment file."""
    outcome = result(json.dumps({"models": {name: {"model": "a/b"}}}).encode(), tmp_path)
    safe = set(string.ascii_letters + string.digits + "._-")
    if isinstance(outcome, ConfigError):
        assert not set(name) <= safe or not 0 < len(name) <= 64 or name[0] in "._-"
        return
    assert list(outcome.models) == [name]
    assert set(name) <= safe
    assert name[0].isalnum()
    assert shlex.quote(name) == name


@pytest.mark.parametrize("name", [*HOSTILE, "../x", "a/b", "a@b", ".", "..", "-x", "x" * 65, "a\\x2db", "ä", "a:b"])
def test_no_hostile_text_becomes_the_name_of_a_unit(name: str, tmp_path: Path) -> None:
    assert isinstance(result(json.dumps({"models": {name: {"model": "a/b"}}}).encode(), tmp_path), ConfigError)


@pytest.mark.parametrize("text", [*HOSTILE, "/../etc", "../x", "a/..", "/"])
@pytest.mark.parametrize(
    "place", [("swap", "file"), ("engine", "version"), ("engine", "hub_token_file"), ("engine", "index"), ("engine", "find_links")]
)
def test_no_hostile_text_becomes_a_path_version_or_url(text: str, place: tuple[str, str], tmp_path: Path) -> None:
    assert isinstance(result(json.dumps({place[0]: {place[1]: text}}).encode(), tmp_path), ConfigError)


@pytest.mark.parametrize("text", [*HOSTILE, "/../etc", "../x", "a/..", "/", "a/b/c", "a/-b", "a/b--c"])
@pytest.mark.parametrize("key", ["model", "host", "health", "profile", "api_key_file"])
def test_no_hostile_text_becomes_a_folder_or_address(text: str, key: str, tmp_path: Path) -> None:
    model = {"model": "a/b"} | {key: text}
    assert isinstance(result(json.dumps({"models": {"m": model}}).encode(), tmp_path), ConfigError)
