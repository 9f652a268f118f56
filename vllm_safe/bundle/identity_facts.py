"""What is secret here, and what names this machine and its people: read from the configuration and from the machine's own lists."""

from __future__ import annotations

import os
import platform
import pwd
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from vllm_safe.bundle.identity import Identity, is_public_host
from vllm_safe.common.errors import Failure
from vllm_safe.config import document
from vllm_safe.config.document import Mapping as YamlMapping
from vllm_safe.config.document import Node, Scalar, Sequence
from vllm_safe.contract.small_files import read_regular
from vllm_safe.report.redact import names_secret

_PEOPLE = range(1000, 60000)  # user IDs of people (login.defs: UID_MIN, UID_MAX)
_KEY_FILES = ("api_key_file", "hub_token_file")
_LONGEST_KEY = 1 << 16  # bytes of such a file, whoever may read it: a key that everybody can read is still one
# Variables of programs that a model is made of: their values say how it runs, and are no secrets, unless the name says so.
_KNOWN = re.compile(
    r"(?:VLLM|NCCL|CUDA|CUDNN|CUBLAS|NVIDIA|NVCC|TORCH|TORCHINDUCTOR|PYTORCH|OMP|MKL|OPENBLAS|TRITON|GLOO|UCX|FLASHINFER|FLASH_ATTENTION|"
    r"HF_HUB|TRANSFORMERS|TOKENIZERS|SAFETENSORS|RAY|MALLOC|LD|LC|XDG)_\w+\Z|(?:PYTHON[A-Z]+|PATH|HOME|LANG|TZ|TMPDIR|USER|SHELL)\Z"
)
_URL_HOST = re.compile(r"://(?:[^/\s@]*@)?([\w.-]+)")
_URL_PASSWORD = re.compile(r"://[^/\s:@]*:([^/\s@]+)@")
_PLAIN = re.compile(r"(?:-?[\d.]+\s?\w{0,3}|true|false|yes|no|on|off|auto|none|null)\Z", re.IGNORECASE)


def read_identity(config_path: Path, environment: Mapping[str, str], root: Path = Path("/")) -> Identity:
    """Read it all, as far as this user may. environment: Environment= of the model's unit."""
    people = [entry for entry in pwd.getpwall() if entry.pw_uid in _PEOPLE]
    names = {entry.pw_name for entry in people} | {os.environ.get(key, "") for key in ("SUDO_USER", "LOGNAME", "USER")}
    configured = _yaml(config_path)
    hosts = {
        *_parts(platform.node()),
        *_hosts(_text(root / "etc/hosts")),
        *_domains(_text(root / "etc/resolv.conf")),
        *_upstream(configured),
        *(_nodes(configured) if configured else ()),
    }
    return Identity(
        secrets=frozenset(_secrets_of(configured, environment)) - {""},
        hosts=frozenset(hosts) - {""},
        users=frozenset({*names, *(word for entry in people for word in _full_name(entry.pw_gecos))} - {""}),
        homes=frozenset(entry.pw_dir for entry in people if entry.pw_dir.count("/") > 1),
        ids=frozenset({_text(root / "etc/machine-id").strip()} - {""}),
    )


def secret_values(variables: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield the values of variables that are secrets, or may be: those of which nothing is known."""
    for name, value in variables:
        if (names_secret(name) or not _KNOWN.match(name)) and not _PLAIN.match(value):
            yield value


def _yaml(path: Path) -> Node | None:
    """Return the configuration as YAML, whether or not it is a valid one: secrets that are in the wrong place are secrets."""
    try:
        return document.read_document(path).root
    except (Failure, OSError):
        return None


def _secrets_of(root: Node | None, environment: Mapping[str, str]) -> Iterator[str]:
    """Yield the secrets in a configuration and in variables, and the passwords in their URLs."""
    if root is not None:
        yield from _secrets(root)
    yield from secret_values(environment.items())
    for text in (*(_scalars(root) if root is not None else ()), *environment.values()):
        yield from _URL_PASSWORD.findall(text)


def _secrets(node: Node) -> Iterator[str]:
    """Yield keys in the files that are named, values with the name of a secret, also in a command line, and the unknown ones in `env`."""
    if isinstance(node, Sequence):
        for before, item in zip((None, *node.items), node.items, strict=False):
            if isinstance(before, Scalar) and before.text.startswith("--") and names_secret(before.text) and isinstance(item, Scalar):
                yield item.text
            yield from _secrets(item)
    if not isinstance(node, YamlMapping):
        return
    for key, value in node.items:
        if key.text in _KEY_FILES and isinstance(value, Scalar):
            yield from (read_regular(value.text, _LONGEST_KEY) or b"").decode(errors="replace").split()
        elif names_secret(key.text):
            yield from _scalars(value)
        elif key.text == "env" and isinstance(value, YamlMapping):
            yield from secret_values((name.text, text) for name, inner in value.items for text in _scalars(inner))
        else:
            yield from _secrets(value)


def _scalars(node: Node) -> Iterator[str]:
    if isinstance(node, Scalar):
        yield node.text
    elif isinstance(node, Sequence):
        for item in node.items:
            yield from _scalars(item)
    elif isinstance(node, YamlMapping):
        for _, value in node.items:
            yield from _scalars(value)


def _hosts(text: str) -> Iterator[str]:
    """Yield the names in /etc/hosts, apart from those that every machine has."""
    for line in text.splitlines():
        for name in line.partition("#")[0].split()[1:]:
            if not name.startswith(("localhost", "ip6-")):
                yield from _parts(name)


def _full_name(gecos: str) -> Iterator[str]:
    """Yield the full name of a person, and its longer parts: a first name of three letters is too often another word."""
    name = gecos.partition(",")[0]
    yield from (name, *(word for word in name.split() if len(word) > 3))


def _parts(name: str) -> Iterator[str]:
    """Yield a name of a host, its part before the domain, and the domain, unless that is one word such as lan."""
    short, _, domain = name.partition(".")
    yield from (name, short, *([domain] if "." in domain else []))


def _upstream(root: Node | None) -> Iterator[str]:
    """Yield the hosts in the URLs of a configuration, apart from those that everybody knows."""
    if root is not None:
        found = (host for text in _scalars(root) for host in _URL_HOST.findall(text))
        yield from (host for host in found if not is_public_host(host))


def _nodes(node: Node) -> Iterator[str]:
    """Yield the names of other machines that serve a model with this one."""
    if isinstance(node, YamlMapping):
        for key, value in node.items:
            yield from (part for name in _scalars(value) for part in _parts(name)) if key.text == "nodes" else _nodes(value)


def _domains(text: str) -> Iterator[str]:
    """Yield the domains in /etc/resolv.conf, apart from single words such as lan."""
    for line in text.splitlines():
        if line.startswith(("search ", "domain ")):
            yield from (name for name in line.split()[1:] if "." in name.strip("."))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
