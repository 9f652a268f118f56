"""earlyoom's arguments, and that they pass through an environment file unchanged."""

from __future__ import annotations

import re
from dataclasses import replace

from hypothesis import example, given
from hypothesis import strategies as st

from vllm_safe.config.settings import Config, Earlyoom
from vllm_safe.earlyoom.earlyoom_arguments import EarlyoomFiles, decide_earlyoom, decide_earlyoom_arguments, join_arguments, keep_earlyoom

OPTIONS_OF_1_7 = {"-m", "-s", "-M", "-S", "-r", "-n", "-N", "-g", "-p", "--prefer", "--avoid", "--dryrun"}
VLLM = ["VLLM::EngineCor", "VLLM::Worker_TP", "VLLM::APIServer", "vllm", "python3"]  # as in comm: the first 15 characters


def split_as_systemd_does(text: str) -> tuple[str, ...]:
    """Split as extract_first_word(EXTRACT_RELAX | EXTRACT_UNQUOTE) does: a backslash quotes the next character, inside quotes too."""
    words: list[str] = []
    word, quote, pending = "", "", False
    characters = iter(text)
    for character in characters:
        if character == "\\":
            word, pending = word + next(characters, ""), True
        elif character == quote:
            quote = ""
        elif not quote and character in "'\"":
            quote, pending = character, True
        elif not quote and character in " \t\n\r":
            if pending:
                words.append(word)
            word, pending = "", False
        else:
            word, pending = word + character, True
    return (*words, word) if pending else tuple(words)


def read_as_systemd_does(text: str) -> dict[str, str]:
    """Parse as parse_env_file_internal() does, for values quoted as in earlyoom.env. Anything that it could read differently fails."""
    found: dict[str, str] = {}
    characters = iter(text)
    for character in characters:
        if character == "#":
            assert "\\" not in "".join(iter(lambda: next(characters), "\n")), "the line after a comment would be one too"
            continue
        key = character + "".join(iter(lambda: next(characters), "="))
        assert re.fullmatch(r"[A-Z_]+", key)
        assert next(characters) == '"'
        value = ""
        for inside in iter(lambda: next(characters), '"'):
            if inside != "\\":
                value += inside
            elif (escaped := next(characters)) in '"\\`$':
                value += escaped
            elif escaped != "\n":
                value += "\\" + escaped
        assert next(characters) == "\n"
        found[key] = value
    return found


def test_the_plans_semantics_and_only_options_that_every_version_has() -> None:
    arguments = decide_earlyoom_arguments(Config())
    assert arguments[:4] == ("-m", "5", "-s", "5")
    assert {word for word in arguments if re.fullmatch(r"--?[a-zA-Z]+", word)} <= OPTIONS_OF_1_7


def test_the_patterns_match_what_they_are_for() -> None:
    earlyoom = Config().earlyoom
    assert all(re.search(earlyoom.prefer, name) for name in VLLM)
    assert all(re.search(earlyoom.avoid, name) for name in ("sshd", "bash", "systemd", "init", "login"))
    assert not any(re.search(earlyoom.avoid, name) for name in VLLM)
    assert not re.search(earlyoom.prefer, "python3.11-config")


def test_fractions_of_a_percent_are_passed_on() -> None:
    arguments = decide_earlyoom_arguments(Config(earlyoom=Earlyoom(memory=7.5, swap=0.25)))
    assert arguments[:4] == ("-m", "7.5", "-s", "0.25")


def test_more_than_earlyoom_takes_would_end_it() -> None:
    assert decide_earlyoom_arguments(Config(earlyoom=Earlyoom(memory=100.0)))[:2] == ("-m", "99")


def test_switched_off_there_is_no_file() -> None:
    assert decide_earlyoom(replace(Config(), earlyoom=Earlyoom(enabled=False))) == EarlyoomFiles()


def test_a_mistake_in_the_configuration_leaves_earlyoom_as_it_was_before_the_boot_too() -> None:
    """A boot takes what is in /run, and the arguments stay."""
    ours = decide_earlyoom(Config())
    assert keep_earlyoom(ours) == keep_earlyoom(replace(ours, dropin=None)) == ours
    assert keep_earlyoom(EarlyoomFiles()) == EarlyoomFiles()


def test_the_file_is_one_assignment_below_a_comment() -> None:
    text = decide_earlyoom(Config()).arguments
    assert text is not None
    comment, assignment, rest = text.split("\n")
    assert comment.startswith("# ")
    assert assignment.startswith('EARLYOOM_ARGS="')
    assert rest == ""
    inside = re.sub(r'\\(["\\`$])', r"\1", assignment.removeprefix('EARLYOOM_ARGS="').removesuffix('"'))
    assert split_as_systemd_does(inside) == decide_earlyoom_arguments(Config())


# A superset of the patterns that config.yaml accepts, which are printable ASCII (config/string_types.py).
patterns = st.text(st.characters(codec="utf-8", exclude_characters="\0\n\r"), max_size=30)


@given(prefer=patterns, avoid=patterns, memory=st.floats(0.01, 99), swap=st.floats(0.01, 100))
@example(prefer="' $(reboot) `id` ${HOME} $$ %n \" \\", avoid="\\", memory=5, swap=5)
@example(prefer='\\"', avoid="\\'", memory=5, swap=5)
def test_any_pattern_is_one_word_of_what_earlyoom_gets(prefer: str, avoid: str, memory: float, swap: float) -> None:
    config = Config(earlyoom=Earlyoom(prefer=prefer, avoid=avoid, memory=memory, swap=swap))
    text = decide_earlyoom(config).arguments
    assert text is not None
    words = split_as_systemd_does(read_as_systemd_does(text)["EARLYOOM_ARGS"])
    assert words == decide_earlyoom_arguments(config)
    assert words[-4:] == ("--prefer", prefer, "--avoid", avoid)


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0\n\r"), max_size=20), max_size=6))
def test_any_words_survive_the_splitting(words: list[str]) -> None:
    assert split_as_systemd_does(join_arguments(tuple(words))) == tuple(words)
