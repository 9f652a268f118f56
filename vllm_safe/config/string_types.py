"""Texts of which not every one will do: paths, patterns, URLs, versions, addresses, hub ids."""

from __future__ import annotations

import math
import re
from pathlib import Path

from vllm_safe.common.libc import regex_error
from vllm_safe.config.document import Node
from vllm_safe.config.mismatch import Mismatch, MismatchError, mismatch, node_text

_MOST_REPEATS = 1000  # of a pattern: a name has 15 characters


def read_path(node: Node) -> Path:
    """An absolute path that stays where it points, whatever stands before it."""
    text = node_text(node)
    if not text.startswith("/") or ".." in text.split("/") or not text.strip("/") or not text.isprintable() or len(text) > 4000:
        raise mismatch(node)
    return Path(text)


def read_pattern(node: Node) -> str:
    """An extended regular expression that earlyoom can compile: one that it cannot would keep it from starting."""
    text = node_text(node)
    if not re.fullmatch(r"[ -~]{1,500}", text):
        raise mismatch(node)
    # ((a{99}){99}){99} has a million states, and regcomp(3) no bound but the memory.
    if math.prod(max(int(least or 1), int(most or 1)) for least, most in re.findall(r"\{(\d*),?(\d*)\}", text)) > _MOST_REPEATS:
        raise MismatchError(Mismatch(node, f"repeats too much: the product of its {{...}} is above {_MOST_REPEATS}"))
    if said := regex_error(text):
        raise MismatchError(Mismatch(node, f"is no extended regular expression ({said})"))
    return text


_URL = r"https?://(?:[A-Za-z0-9._-]+|\[(?P<ipv6>[0-9A-Fa-f:.]+)\])(?::(?P<port>[0-9]{1,5}))?(?:/[!-~]*)?"


def read_url(node: Node) -> str:
    """A URL, http or https, without a password: the file is for everybody to read, and so is argv."""
    text = node_text(node)
    if re.match(r"https?://[^/\s]*@", text):
        raise MismatchError(
            Mismatch(node, "has a name or password in it, for everybody to read", "a URL without one; those belong into ~/.netrc")
        )
    if not (match := re.fullmatch(_URL, text)):
        raise mismatch(node, f"https://{text}" if re.fullmatch(_URL, f"https://{text}") and "." in text else "")
    if (port := match["port"]) and not 1 <= int(port) <= 65535:
        raise MismatchError(Mismatch(node, f"cannot have port {port} in it", "a URL with a port from 1 to 65535, or with none"))
    if match["ipv6"] and not _is_ipv6(match["ipv6"]):
        raise MismatchError(Mismatch(node, f"has [{match['ipv6']}] in it, which is no IPv6 address", "an address such as [::1]"))
    return text


def read_http_url(node: Node) -> str:
    """A URL that the unit's main process asks, which speaks no TLS."""
    if read_url(node).startswith("https:"):
        raise MismatchError(Mismatch(node, "cannot be https: it is asked on this machine only", suggestion="http" + read_url(node)[5:]))
    return read_url(node)


# In the path of a folder of wheels. uv takes a comma for the beginning of the next one, and reads no further than #. The folder is also
# bound into a sandbox (BindReadOnlyPaths=), where systemd takes a colon for the end of the path; quotes and backslashes are lost on the
# way to its executor (systemd issues 30747 and 40985).
_NOT_PASSED_ON = r"[:,#\"'\\]"


def read_links(node: Node) -> str:
    """Where wheels are: a URL or an absolute path."""
    if not node_text(node).startswith("/"):
        return read_url(node)
    if odd := re.search(_NOT_PASSED_ON, node_text(node)):
        raise MismatchError(Mismatch(node, f"cannot have {odd[0]} in it", "a folder whose path has none of : , # \" ' \\ in it"))
    return str(read_path(node))


VERSION = r"[0-9]{1,6}(\.[0-9]{1,6}){1,4}((a|b|rc)[0-9]{1,6})?(\.post[0-9]{1,6})?(\.dev[0-9]{1,8})?(\+[a-z0-9.]{1,40})?"


def read_version(node: Node) -> str:
    """A version of PEP 440, as it stands in the names of folders."""
    text = node_text(node)
    if not re.fullmatch(VERSION, text):
        raise mismatch(node, text[1:] if re.fullmatch(r"v[0-9.]+[0-9]", text) else "")
    return text


def read_host_name(node: Node) -> str:
    """An address or a host name. Something like an address that is none is no host name either."""
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


def _is_ipv6(text: str) -> bool:
    import ipaddress  # noqa: PLC0415 - 4 ms that only who serves on IPv6 pays

    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"


def read_model_id(node: Node) -> str:
    """A hub id as huggingface_hub takes it (validate_repo_id), or a path. Both become folder names below ours."""
    text = node_text(node)
    if text.startswith("/"):
        return str(read_path(node))
    if not re.fullmatch(f"{_PART}/{_PART}", text) or "--" in text or ".." in text or len(text) > 96:
        pasted = re.fullmatch(rf"(?:https?://)?(?:huggingface\.co|hf\.co)/({_PART}/{_PART})(?:/.*)?", text)
        raise mismatch(node, pasted[1] if pasted else "")
    return text
