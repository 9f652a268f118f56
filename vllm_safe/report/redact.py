"""Secrets, as they appear in what servers print. Leave one thing too many out rather than one too few: a report is sent to strangers."""

from __future__ import annotations

import re

REMOVED = "[removed]"

# Names whose value is a secret. Not `token` alone: vLLM's log is full of eos_token_id=2 and max_tokens=16.
_NAME = (
    r"[\w-]*(?:api[_-]?keys?|secret(?:[_-]\w+)*|passw(?:or)?d|passphrase|credentials?|private[_-]?key|"
    r"(?:access|auth|hub|hf|huggingface|hugging_face_hub|bearer|github|ngc|refresh|session|id)[_-]?tokens?)"
)
_QUOTED = r"\"(?:[^\"\\]|\\.)*\"?|'(?:[^'\\]|\\.)*'?"
_PATTERNS = (
    # Authorization: Bearer ..., and the same as a header in a list or an object
    (re.compile(rf"((?:proxy-)?authorization[\"']?\s*[:=,]\s*)({_QUOTED}|[^\s,;\"']+(?:\s+[^\s,;\"']+)?)", re.IGNORECASE), r"\1" + REMOVED),
    (re.compile(r"\b(bearer|basic)\s+[\w.~+/=-]{8,}", re.IGNORECASE), r"\1 " + REMOVED),
    (re.compile(r"((?:set-)?cookie[\"']?\s*:\s*).+", re.IGNORECASE), r"\1" + REMOVED),
    # api_key=..., 'api_key': ['...'], "api-key": "...", --api-key ..., HF_TOKEN=...; None, False and nothing at all stay as they are
    (
        re.compile(
            rf"(\b{_NAME}[\"']?\s*(?:=|:)\s*|--{_NAME}[=\s]\s*)(?!(?:None|null|False|True|false|true)\b)"
            rf"(\[[^\]]*\]?|\([^)]*\)?|{_QUOTED}|[^\s,;\])}}\"']+)",
            re.IGNORECASE,
        ),
        r"\1" + REMOVED,
    ),
    # The user and the password of an address
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s/@]+@", re.IGNORECASE), r"\1" + REMOVED + "@"),
    # What a signed download carries
    (re.compile(r"([?&](?:signature|sig|x-amz-[\w-]+|token|key-pair-id|policy)=)[^&\s\"']+", re.IGNORECASE), r"\1" + REMOVED),
    # Keys by their own shape: Hugging Face, OpenAI and those like it, GitHub, GitLab, AWS, Google, NVIDIA, Slack, JWT
    (
        re.compile(
            r"\b(?:(?:hf|api_org)_[A-Za-z0-9]{16,}|sk-[\w-]{16,}|(?:gh[pousr]_|github_pat_)\w{20,}|glpat-[\w-]{16,}|"
            r"(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{30,}|nvapi-[\w-]{20,}|xox[abprs]-[\w-]{10,}|"
            r"eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?)"
        ),
        REMOVED,
    ),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*"), REMOVED),
)


def redact(text: str) -> str:
    """A text without what looks like a key, a token or a password."""
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text
