"""Types of settings that are texts of a certain form: paths, patterns, URLs, versions, addresses, hub ids."""

from __future__ import annotations

import math
import re
from pathlib import Path

from vllm_safe.common.libc import regex_error
from vllm_safe.config.document import Node
from vllm_safe.config.mismatch import Mismatch, MismatchError, mismatch, node_text

_MOST_REPEATS = 1000  # in a pattern; a process name has 15 characters


def read_path(node: Node) -> Path:
    """Read an absolute path without "..", so that it cannot lead out of a folder that is put before it. Raises MismatchError."""
    text = node_text(node)
    if not text.startswith("/") or ".." in text.split("/") or not text.strip("/") or not text.isprintable() or len(text) > 4000:
        raise mismatch(node)
    return Path(text)


def read_pattern(node: Node) -> str:
    """Read an extended regular expression that earlyoom can compile; with any other, earlyoom would not start. Raises MismatchError."""
    text = node_text(node)
    if not re.fullmatch(r"[ -~]{1,500}", text):
        raise mismatch(node)
    # ((a{99}){99}){99} has a million states, and regcomp(3) is bounded only by the memory.
    if math.prod(max(int(least or 1), int(most or 1)) for least, most in re.findall(r"\{(\d*),?(\d*)\}", text)) > _MOST_REPEATS:
        raise MismatchError(Mismatch(node, f"repeats too much: the product of its {{...}} is above {_MOST_REPEATS}"))
    if error := regex_error(text):
        raise MismatchError(Mismatch(node, f"is not a valid extended regular expression ({error})"))
    return text


_URL = r"https?://(?:[A-Za-z0-9._-]+|\[(?P<ipv6>[0-9A-Fa-f:.]+)\])(?::(?P<port>[0-9]{1,5}))?(?:/[!-~]*)?"


def read_url(node: Node) -> str:
    """Read an http or https URL without a user name or password, since every user can read this file and argv. Raises MismatchError."""
    text = node_text(node)
    if re.match(r"https?://[^/\s]*@", text):
        raise MismatchError(
            Mismatch(node, "has a user name or password in it, which every user can read", "a URL without them; they belong in ~/.netrc")
        )
    if not (match := re.fullmatch(_URL, text)):
        raise mismatch(node, f"https://{text}" if re.fullmatch(_URL, f"https://{text}") and "." in text else "")
    if (port := match["port"]) and not 1 <= int(port) <= 65535:
        raise MismatchError(Mismatch(node, f"cannot have port {port} in it", "a URL with a port from 1 to 65535, or with none"))
    if match["ipv6"] and not _is_ipv6(match["ipv6"]):
        raise MismatchError(Mismatch(node, f"has [{match['ipv6']}] in it, which is not an IPv6 address", "an address such as [::1]"))
    return text


def read_http_url(node: Node) -> str:
    """Read a URL that the unit's main process requests; it does not speak TLS. Raises MismatchError."""
    if read_url(node).startswith("https:"):
        raise MismatchError(Mismatch(node, "cannot be https: it is local to this machine", suggestion="http" + read_url(node)[5:]))
    return read_url(node)


# Characters that the path of a folder of wheels must not have. For uv a comma begins the next path, and it ignores everything after #.
# The folder is also bound into a sandbox (BindReadOnlyPaths=): there systemd takes a colon as the end of the path, and loses quotes and
# backslashes on the way to its executor (systemd issues 30747 and 40985).
_NOT_PASSED_ON = r"[:,#\"'\\]"


def read_links(node: Node) -> str:
    """Read the location of wheels: a URL or an absolute path. Raises MismatchError."""
    if not node_text(node).startswith("/"):
        return read_url(node)
    if odd := re.search(_NOT_PASSED_ON, node_text(node)):
        raise MismatchError(Mismatch(node, f"cannot have {odd[0]} in it", "a folder whose path has none of : , # \" ' \\"))
    return str(read_path(node))


VERSION = r"[0-9]{1,6}(\.[0-9]{1,6}){1,4}((a|b|rc)[0-9]{1,6})?(\.post[0-9]{1,6})?(\.dev[0-9]{1,8})?(\+[a-z0-9.]{1,40})?"


def read_version(node: Node) -> str:
    """Read a version (PEP 440); it becomes part of the names of folders. Raises MismatchError."""
    text = node_text(node)
    if not re.fullmatch(VERSION, text):
        raise mismatch(node, text[1:] if re.fullmatch(r"v[0-9.]+[0-9]", text) else "")
    return text


def read_host_name(node: Node) -> str:
    """Read an address or a host name. A text of digits and dots that is not an IPv4 address is not a host name. Raises MismatchError."""
    text = node_text(node)
    if ":" in text and re.fullmatch(r"\[?[0-9A-Fa-f:.]+\]?", text):
        bare = text.strip("[]")
        if not _is_ipv6(bare):
            raise mismatch(node)
        if bare != text:
            raise mismatch(node, bare)
        return text
    if re.fullmatch(r"[0-9.]+", text):
        parts = text.split(".")
        if len(parts) != 4 or not all(re.fullmatch(r"0|[1-9][0-9]{0,2}", part) and int(part) < 256 for part in parts):
            raise mismatch(node)
    elif not re.fullmatch(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-)){0,8}", text):
        raise mismatch(node, "0.0.0.0" if text == "*" else "")  # noqa: S104 - a text, nothing is bound
    return text


def read_node_name(node: Node) -> str:
    """Read the host name of a machine. An address would not tell which machine of the list this one is. Raises MismatchError."""
    text = read_host_name(node)
    if ":" in text or re.fullmatch(r"[0-9.]+", text):
        raise MismatchError(Mismatch(node, f"cannot be the address {text}", "the host name of a machine, which `hostname` prints there"))
    return text


def write_name(name: str) -> str:
    """Return a host name as YAML: what YAML would read as a number or a boolean is in quotes."""
    return name if re.match(r"(?!(?:yes|no|on|off|true|false|null|y|n)$)[a-z]", name) else f"'{name}'"


def _is_ipv6(text: str) -> bool:
    import ipaddress  # noqa: PLC0415 - the import takes 4 ms, and only an IPv6 address needs it

    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"


def read_model_id(node: Node) -> str:
    """Read a hub id that huggingface_hub accepts (validate_repo_id), or a path. Raises MismatchError.

    A hub id becomes the name of a folder below the package's own.
    """
    text = node_text(node)
    if text.startswith("/"):
        return str(read_path(node))
    if not is_hub_id(text):
        pasted = re.fullmatch(rf"(?:https?://)?(?:huggingface\.co|hf\.co)/({_PART}/{_PART})(?:/.*)?", text)
        raise mismatch(node, pasted[1] if pasted else "")
    return text


def is_hub_id(text: str) -> bool:
    """Return whether a text is ORG/NAME, as huggingface_hub accepts it."""
    return bool(re.fullmatch(f"{_PART}/{_PART}", text)) and "--" not in text and ".." not in text and len(text) <= 96
