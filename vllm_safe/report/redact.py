"""Removal of secrets from the output of servers. It removes too much rather than too little, since reports are sent to strangers."""

from __future__ import annotations

import re

REMOVED = "[removed]"

# Endings of names whose value is a secret. `token` alone is not one: vLLM's log is full of eos_token_id=2 and max_tokens=16.
_SECRET_NAME = re.compile(
    r"(?:api[_-]?keys?|secret(?:[_-][\w-]*)?|passw(?:or)?d|passphrase|credentials?|private[_-]?key|"
    r"(?:access|auth|hub|hf|huggingface|hugging_face_hub|bearer|github|ngc|refresh|session|id)[_-]?tokens?|"
    r"(?-i:(?:\A|(?<=_))(?:TOKEN|KEY|PASS|PWD|AUTH|PAT)))\Z",  # names of variables, which vLLM's log does not have
    re.IGNORECASE,
)
_QUOTED = r"\"(?:[^\"\\]|\\.)*\"?|'(?:[^'\\]|\\.)*'?"
# A name and the separator before its value: api_key=..., 'api_key': ['...'], "api-key": "...". A space separates only after an option.
_NAMED = re.compile(r"(?<![\w-])([\w-]++)([\"']?\s*+[=:]\s*+|\s++)")
# The values None, null, False and True, and an empty value, are kept.
_VALUE = re.compile(rf"(?!(?:None|null|False|True)\b)(?:\[[^\]]*\]?|\([^)]*\)?|{_QUOTED}|[^\s,;\])}}\"']+)", re.IGNORECASE)

# A program that writes to the log may try to prevent a report. Each pattern therefore takes time linear in the length of the text: none
# scans a whole run of characters from each position within it, and none can split a run in more than one way.
_HEADERS = (
    # Authorization: Bearer ..., and the same header in a list or an object
    (re.compile(rf"((?:proxy-)?authorization[\"']?\s*[:=,]\s*)({_QUOTED}|[^\s,;\"']+(?:\s+[^\s,;\"']+)?)", re.IGNORECASE), r"\1" + REMOVED),
    (re.compile(r"\b(bearer|basic)\s+[\w.~+/=-]{8,}", re.IGNORECASE), r"\1 " + REMOVED),
    (re.compile(r"((?:set-)?cookie[\"']?\s*:\s*).+", re.IGNORECASE), r"\1" + REMOVED),
    # What people ask a model (enable-log-requests): a prompt, its tokens, the messages of a chat
    (re.compile(rf"(\bprompt(?:_token_ids)?[\"']?\s?[:=]\s?)({_QUOTED}|\[[^\]]*\]?)"), r"\1" + REMOVED),
    (re.compile(rf"([\"']content[\"']\s?:\s?)({_QUOTED})"), r"\1" + REMOVED),
)
_SHAPES = (
    # User and password of a URL
    (re.compile(r"(://)[^\s/@]+@"), r"\1" + REMOVED + "@"),
    # Query parameters of a signed download
    (re.compile(r"([?&](?:signature|sig|x-amz-[\w-]+|token|key-pair-id|policy)=)[^&\s\"']+", re.IGNORECASE), r"\1" + REMOVED),
    # Keys recognised by their format: Hugging Face, OpenAI and similar, GitHub, GitLab, AWS, Google, NVIDIA, Slack, JWT
    (
        re.compile(
            r"(?<![A-Za-z0-9])(?:(?:hf|api_org)_[A-Za-z0-9]{16,}|sk-[\w-]{16,}|(?:gh[pousr]_|github_pat_)\w{20,}|glpat-[\w-]{16,}|"
            r"(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{30,}|nvapi-[\w-]{20,}|xox[abprs]-[\w-]{10,}|eyJ[\w-]{16,}(?:\.[\w-]*)*)"
        ),
        REMOVED,
    ),
)
_BASE64 = re.compile(r"(?<![\w+/.-])[A-Za-z0-9+/]{48,}+={0,2}(?![\w.-])")  # a line of a key; or a checksum, or a path: see _without_base64
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?s:.*?)(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)")


def redact(text: str) -> str:
    """Return the text without parts that look like a key, a token or a password, and without what people asked a model."""
    text = without_private_keys(text)
    for pattern, replacement in _HEADERS:
        text = pattern.sub(replacement, text)
    text = _without_named(text)
    for pattern, replacement in _SHAPES:
        text = pattern.sub(replacement, text)
    return _BASE64.sub(_without_base64, text)


def without_private_keys(text: str) -> str:
    """Return the text without private keys in PEM's format, which have many lines; one without an end takes the rest of the text along."""
    return _PRIVATE_KEY.sub(REMOVED, text)


def names_secret(name: str) -> bool:
    """Return whether a setting, an option or a variable of that name has a secret as its value."""
    return bool(_SECRET_NAME.search(name))


def _without_base64(match: re.Match[str]) -> str:
    """Remove what has letters of both cases and digits in the proportions of base64: no path has, nor hexadecimal digits."""
    upper, lower, digits = (sum(map(kind, match[0])) for kind in (str.isupper, str.islower, str.isdecimal))
    return REMOVED if min(upper, lower) > len(match[0]) // 6 and digits > len(match[0]) // 20 else match[0]


def _without_named(text: str) -> str:
    """Remove the values whose names are those of secrets."""
    kept, copied, position = [], 0, 0
    while named := _NAMED.search(text, position):
        position = named.end()
        if named[2].isspace() and not named[1].startswith("--"):
            continue
        if _SECRET_NAME.search(named[1]) and (value := _VALUE.match(text, position)):
            kept += [text[copied:position], REMOVED]
            copied = position = value.end()
    return "".join([*kept, text[copied:]])
