"""Secrets, as they appear in what servers print. Leave one thing too many out rather than one too few: a report is sent to strangers."""

from __future__ import annotations

import re

REMOVED = "[removed]"

# Names whose value is a secret, by how they end. Not `token` alone: vLLM's log is full of eos_token_id=2 and max_tokens=16.
_SECRET_NAME = re.compile(
    r"(?:api[_-]?keys?|secret(?:[_-][\w-]*)?|passw(?:or)?d|passphrase|credentials?|private[_-]?key|"
    r"(?:access|auth|hub|hf|huggingface|hugging_face_hub|bearer|github|ngc|refresh|session|id)[_-]?tokens?)\Z",
    re.IGNORECASE,
)
_QUOTED = r"\"(?:[^\"\\]|\\.)*\"?|'(?:[^'\\]|\\.)*'?"
# A name and what parts it from its value: api_key=..., 'api_key': ['...'], "api-key": "..."; a space does only after an option's.
_NAMED = re.compile(r"(?<![\w-])([\w-]++)([\"']?\s*+[=:]\s*+|\s++)")
# None, False and nothing at all stay as they are.
_VALUE = re.compile(rf"(?!(?:None|null|False|True)\b)(?:\[[^\]]*\]?|\([^)]*\)?|{_QUOTED}|[^\s,;\])}}\"']+)", re.IGNORECASE)

# Whoever may write to the log may try to keep a report from being made: the time that each pattern takes is linear in the length of the
# text. None looks through the whole of a run of characters from each place within it, and none can split a run in more than one way.
_HEADERS = (
    # Authorization: Bearer ..., and the same as a header in a list or an object
    (re.compile(rf"((?:proxy-)?authorization[\"']?\s*[:=,]\s*)({_QUOTED}|[^\s,;\"']+(?:\s+[^\s,;\"']+)?)", re.IGNORECASE), r"\1" + REMOVED),
    (re.compile(r"\b(bearer|basic)\s+[\w.~+/=-]{8,}", re.IGNORECASE), r"\1 " + REMOVED),
    (re.compile(r"((?:set-)?cookie[\"']?\s*:\s*).+", re.IGNORECASE), r"\1" + REMOVED),
)
_SHAPES = (
    # The user and the password of an address
    (re.compile(r"(://)[^\s/@]+@"), r"\1" + REMOVED + "@"),
    # What a signed download carries
    (re.compile(r"([?&](?:signature|sig|x-amz-[\w-]+|token|key-pair-id|policy)=)[^&\s\"']+", re.IGNORECASE), r"\1" + REMOVED),
    # Keys by their own shape: Hugging Face, OpenAI and those like it, GitHub, GitLab, AWS, Google, NVIDIA, Slack, JWT
    (
        re.compile(
            r"\b(?:(?:hf|api_org)_[A-Za-z0-9]{16,}|sk-[\w-]{16,}|(?:gh[pousr]_|github_pat_)\w{20,}|glpat-[\w-]{16,}|"
            r"(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{30,}|nvapi-[\w-]{20,}|xox[abprs]-[\w-]{10,}|eyJ[\w-]{16,}(?:\.[\w-]*)*)"
        ),
        REMOVED,
    ),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*"), REMOVED),
)


def redact(text: str) -> str:
    """Return the text without what looks like a key, a token or a password."""
    for pattern, replacement in _HEADERS:
        text = pattern.sub(replacement, text)
    text = _without_named(text)
    for pattern, replacement in _SHAPES:
        text = pattern.sub(replacement, text)
    return text


def _without_named(text: str) -> str:
    """Remove the values of what has a secret's name."""
    kept, copied, at = [], 0, 0
    while named := _NAMED.search(text, at):
        at = named.end()
        if named[2].isspace() and not named[1].startswith("--"):
            continue
        if _SECRET_NAME.search(named[1]) and (value := _VALUE.match(text, at)):
            kept += [text[copied:at], REMOVED]
            copied = at = value.end()
    return "".join([*kept, text[copied:]])
