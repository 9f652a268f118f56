"""Removal of what names a machine and its people: hosts, users, home folders, addresses, IDs. Pure.

It removes too much rather than too little, as report/redact.py does, which it calls for secrets.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

from vllm_safe.report.redact import REMOVED, redact, without_private_keys

HOST, USER, ADDRESS, ID = "[host]", "[user]", "[address]", "[id]"

# Names that thousands of machines have: they name nobody, and are words of the text itself.
_WORDS = "admin cuda debian gpu home lan linux llm local localdomain localhost nobody nvidia root server test ubuntu user vllm"
COMMON = frozenset(_WORDS.split())
_SHORT = 4  # characters; a shorter user name, such as "max", is only removed where it can be nothing else
_LEAST_SECRET = 4  # characters; a shorter value is not looked for, since it is in half of all words
_QUOTED_SECRET = 57  # characters of a longer value that a message about the configuration quotes (config/document.py)
# Hosts of the package's own subject. Any other host in a URL may be somebody's.
_PUBLIC = re.compile(
    r"(?:[\w-]+\.)*(?:huggingface\.co|hf\.co|vllm\.ai|pytorch\.org|pypi\.org|pythonhosted\.org|github\.com|githubusercontent\.com|"
    r"nvidia\.com|pydantic\.dev|debian\.org|kernel\.org|python\.org|freedesktop\.org|astral\.sh|localhost)\Z|127\.|0\.0\.0\.0|\[",
    re.IGNORECASE,
)

# Each pattern takes time linear in the length of the text, as those of redact.py.
_MAIL = re.compile(r"(?<![\w.+-])[\w.+-]++@(?=[\w-]++\.)[\w.-]++")
_HOME = re.compile(r"(?<![\w.-])(/(?:home|Users|media|run/media)/)[^/\s\"',:;)\]}\[]++")
_URL_HOST = re.compile(r"(?<=://)((?:\[removed\]@)?)([^\s/:@\"'<>,)\]}]++)")
_NAMED_HOST = re.compile(r"(\bhost(?:name)?[\"']?\s?[=:]\s?[\"'])([^\"'\s]++)")
_UUID = re.compile(r"(?<![\w])(?:GPU-|MIG-)?[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}(?!\w)", re.IGNORECASE)
_DISK = re.compile(r"(?<=/dev/disk/by-id/)[^\s\"',;)]++")
_MAC = re.compile(r"(?<![\w:-])[0-9a-f]{2}(?:[:-][0-9a-f]{2}){5}(?![\w:-])", re.IGNORECASE)
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)")
_IPV6 = re.compile(r"(?<![\w.])[0-9a-f:]{2,64}+(?![\w:])", re.IGNORECASE)  # and times, PCI addresses: see _put_address
_UNITS = re.compile(r"vllm(?:-safe-\w+)?@|.*\.(?:service|slice|scope|socket|target|timer|mount)\Z")  # they look like mail addresses


@dataclass(frozen=True)
class Identity:
    """What is known to be secret, or to name this machine or somebody. See identity_facts.py."""

    secrets: frozenset[str] = frozenset()  # keys and tokens, and values that may be some
    hosts: frozenset[str] = frozenset()
    users: frozenset[str] = frozenset()
    homes: frozenset[str] = frozenset()
    ids: frozenset[str] = frozenset()  # of the machine

    def clean(self, text: str) -> str:
        """Return a text of any number of lines without any of that, and without what looks like it."""
        return "\n".join(map(self._clean_line, without_private_keys(text).split("\n")))

    def _clean_line(self, line: str) -> str:
        for pattern, replacement in self._known:
            line = pattern.sub(replacement, line)
        line = redact(line)
        for pattern, put in _PATTERNS:
            line = pattern.sub(put, line)
        for pattern, replacement in self._names:
            line = pattern.sub(replacement, line)
        return line

    @cached_property
    def _known(self) -> tuple[tuple[re.Pattern[str], str], ...]:
        secrets = _any_of(part for word in self.secrets if len(word) >= _LEAST_SECRET for part in {word, word[:_QUOTED_SECRET]})
        homes = [(re.compile(rf"{_any_of(self.homes)}(?![\w.-])"), f"/home/{USER}")] if self.homes else []
        return (*([(re.compile(secrets), REMOVED)] if secrets else []), *homes)

    @cached_property
    def _names(self) -> tuple[tuple[re.Pattern[str], str], ...]:
        """Return the patterns of names. A name is a word of its own: tower in tower.lan and tower-2, but not in towers."""
        hosts = _any_of(word for word in self.hosts if word.lower() not in COMMON)
        users = [word for word in self.users if word.lower() not in COMMON]
        long, short = (_any_of(word for word in users if (len(word) < _SHORT) is is_short) for is_short in (False, True))
        found = [(rf"(?i)(?<![A-Za-z0-9]){hosts}(?![A-Za-z0-9])", HOST)] if hosts else []
        found += [(rf"(?i)(?<![A-Za-z0-9]){long}(?![A-Za-z0-9])", USER)] if long else []
        found += [(rf"(?:(?<=/)|(?<=~)|(?<=\buser )|(?<=\buser=)|(?<=\bfor )|(?<=\bby )){short}(?=[/\s@,;:.)]|\Z)", USER)] if short else []
        found += [(_any_of(self.ids), ID)] if self.ids else []
        return tuple((re.compile(pattern), replacement) for pattern, replacement in found)


def _any_of(words: Iterable[str]) -> str:
    """Return a pattern for any of the words, the longest first; "" for none."""
    ordered = sorted(filter(None, words), key=lambda word: (-len(word), word))
    return f"(?:{'|'.join(map(re.escape, ordered))})" if ordered else ""


def is_public_host(host: str) -> bool:
    """Return whether a host is this machine for itself, or one that everybody knows."""
    return bool(_PUBLIC.match(host))


def _put_host(match: re.Match[str]) -> str:
    return match[0] if is_public_host(match[2]) else f"{match[1]}{HOST}"


def _put_mail(match: re.Match[str]) -> str:
    return match[0] if _UNITS.match(match[0]) else ADDRESS


def _put_address(match: re.Match[str]) -> str:
    """Replace an address, unless it is that of every machine, or none at all: a time, a PCI address, or C++ without any digit (a::b).

    A port, or a colon of the sentence, may follow an IPv6 address.
    """
    for text in (match[0], match[0].rpartition(":")[0]):
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            continue
        kept = address.is_loopback or address.is_unspecified or not any(map(str.isdecimal, text))
        return match[0] if kept else f"{ADDRESS}{match[0][len(text) :]}"
    return match[0]


_PATTERNS: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (_URL_HOST, _put_host),
    (_NAMED_HOST, _put_host),
    (_MAIL, _put_mail),
    (_HOME, rf"\1{USER}"),
    (_UUID, ID),
    (_DISK, ID),
    (_MAC, ADDRESS),
    (_IPV4, _put_address),
    (_IPV6, _put_address),
)
