"""Explanation of a failed installation in one line, from the output of pip, uv or Python, with what to do about it."""

from __future__ import annotations

import re
from collections.abc import Callable

from vllm_safe.common.errors import Failure
from vllm_safe.common.paths import HOME
from vllm_safe.common.terminal import last_line
from vllm_safe.engine.engine_decision import Installation

AGAIN = "Then run the same command again: downloaded files are kept."


def explain_install_failure(installation: Installation, purpose: str, output: str) -> Failure:
    """Return the failure to report when the step with this purpose failed and its program wrote `output`."""
    for pattern, explain in _TROUBLES:
        if found := re.search(pattern, output):
            what, hint = explain(installation, found)
            return Failure(f"could not {purpose}: {what}", hint=hint)
    return Failure(f"could not {purpose}: {last_line(output.splitlines()) or 'the program ended without an error message'}")


def _full(_: Installation, _found: re.Match[str]) -> tuple[str, str]:
    return "the disk is full", f"Free some space below /var/lib. {AGAIN}"


def _hash(installation: Installation, found: re.Match[str]) -> tuple[str, str]:
    which = re.search(r"Hash mismatch for `([^`]+)`|^ +([\w.-]+==[\w.+-]+) from", found.string, re.MULTILINE)
    whose = f"the hash of {which[1] or which[2]}" if which else "a hash"
    hint = (
        f"A download was corrupted, or {installation.sources} serves other files than the public index. "
        "If it happens again, do not trust that source."
    )
    return f"{whose} differs from the tested one, so it was not installed", hint


def _certificate(installation: Installation, _found: re.Match[str]) -> tuple[str, str]:
    hint = "Install a company's own CA as /usr/local/share/ca-certificates/NAME.crt and run update-ca-certificates."
    return f"the certificate of {installation.sources} is not trusted", hint


def _login(installation: Installation, _found: re.Match[str]) -> tuple[str, str]:
    hint = f"Write the credentials to {HOME}/.netrc (owner vllm, mode 0600): machine HOST login NAME password WORD"
    return f"{installation.sources} requires a login", hint


def _library(_: Installation, found: re.Match[str]) -> tuple[str, str]:
    packages = {"libnuma.so.1": "libnuma1", "libGL.so.1": "libgl1", "libgomp.so.1": "libgomp1"}
    package = packages.get(found[1], f"the package that contains it (apt-file search {found[1]})")
    return f"{found[1]} is missing", f"apt install {package}"


def _no_card(_: Installation, _found: re.Match[str]) -> tuple[str, str]:
    return (
        "vLLM finds no GPU, although the NVIDIA driver shows one",
        "Check that user vllm may use it (ls -l /dev/nvidia*), and run: vllm-safe check",
    )


def _network(installation: Installation, _found: re.Match[str]) -> tuple[str, str]:
    hint = f"Check the network. Proxy: https_proxy=URL vllm-safe install; mirror: engine.index; offline: engine.find_links. {AGAIN}"
    if installation.lacking:
        hint = f"To install offline, engine.find_links must contain everything{_lacking(installation)}. {AGAIN}"
    return f"{installation.sources} cannot be reached, or the connection broke", hint


def _absent(installation: Installation, _found: re.Match[str]) -> tuple[str, str]:
    hint = "Check the version (engine.version, --version), the mirror (engine.index) and the folder of wheels (engine.find_links)."
    return f"{installation.sources} does not have it{_lacking(installation)}", hint


def _damaged(installation: Installation, _found: re.Match[str]) -> tuple[str, str]:
    return (
        f"a file from {installation.sources} is damaged",
        f"Run the same command again. If it happens again, the file at {installation.sources} is bad.",
    )


def _no_pip(_: Installation, _found: re.Match[str]) -> tuple[str, str]:
    return "ensurepip of Python's venv module is missing", "apt install python3-venv"


def _denied(_: Installation, found: re.Match[str]) -> tuple[str, str]:
    return last_line(found.string.splitlines()), "User vllm must be able to read engine.find_links."


_UNREACHABLE = (
    r"dns error|failed to lookup address|[Nn]ame resolution|Name or service not known|Network is unreachable|No route to host|"
    r"Connection refused|Connection reset|[Cc]onnection closed|[Cc]onnection broken|ConnectTimeout|ReadTimeout|timed out|"
    r"tcp connect error|error sending request|error decoding response body|error reading a body|unexpected (?:EOF|end of file)|"
    r"IncompleteRead|early eof|Failed to establish a new connection|Could not connect|Remote end closed|\b50[0234] [A-Z]|"
    r"Request failed after|Failed to fetch"
)

# The first pattern that matches decides: specific patterns come before general ones.
_TROUBLES: tuple[tuple[str, Callable[[Installation, re.Match[str]], tuple[str, str]]], ...] = (
    (r"No space left on device|os error 28|Disk quota exceeded|os error 122", _full),
    (r"Hash mismatch|DO NOT MATCH THE HASHES|Unexpected hash", _hash),
    (r"invalid peer certificate|certificate verify failed|CERTIFICATE_VERIFY_FAILED|UnknownIssuer", _certificate),
    (r"\b40[137] (?:\w+ )?(?:Unauthorized|Forbidden|Proxy Authentication|Client Error)|(?:status code|HTTP error) 40[137]", _login),
    (r"(lib[\w+.-]+\.so[.\d]*): cannot open shared object file", _library),
    (r"Failed to infer device type", _no_card),
    (_UNREACHABLE, _network),
    (r"Failed to extract archive|ZIP structure|[Bb]ad CRC|[Ii]nvalid [Zz]ip|BadZipFile", _damaged),
    (r"ensurepip is not", _no_pip),
    (r"there (?:is|are) no (?:version|matching)|No solution found|No matching distribution|not found in the (?:package|provided)", _absent),
    (r"Permission denied|os error 13", _denied),
)


def _lacking(installation: Installation) -> str:
    if not installation.lacking:
        return ""
    more = f" and {len(installation.lacking) - 5} more" if len(installation.lacking) > 5 else ""
    return f"; {installation.sources.find_links} lacks {', '.join(installation.lacking[:5])}{more}"
