"""What a trouble with the hub is called, and the way out: the kinds are those of models/as_engine/hub_download/hub_trouble.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from vllm_safe.common import paths
from vllm_safe.common.errors import Failure
from vllm_safe.common.sizes import format_size

DEFAULT_HUB = "https://huggingface.co"
_LONGEST = 200  # characters of what the hub, or a program run as another user, says


@dataclass(frozen=True)
class HubRequest:
    """What was asked of which hub. `config` is the file, `token_file` what its engine.hub_token_file says, or ""."""

    name: str
    repo: str
    hub: str = DEFAULT_HUB
    revision: str = ""
    config: str = ""
    token_file: str = ""

    @property
    def command(self) -> str:
        """The command that goes on where this one stopped."""
        return f"vllm-safe fetch {self.name}" + (f" --revision {self.revision}" if self.revision else "")

    @property
    def page(self) -> str:
        """The model's page at the hub."""
        return f"{self.hub.rstrip('/')}/{self.repo}"

    @property
    def tokens(self) -> str:
        """Where an account makes tokens."""
        return f"{self.hub.rstrip('/')}/settings/tokens"


def hub_failure(trouble: Mapping[str, Any], asked: HubRequest, now: datetime) -> Failure:
    """The trouble in one line and the way out in another. The details come from a program of user vllm, and are treated so."""
    kind = str(trouble.get("trouble", ""))
    details = {key: _plain(value) for key, value in trouble.items()}
    if kind in {"gated", "token", "missing"}:
        return _refusal(kind, asked)
    if kind == "busy":
        return _busy(trouble.get("seconds"), asked, now)
    if kind == "disk-full":
        missing = trouble.get("missing")
        rest = f": {format_size(missing)} are still to come" if isinstance(missing, int) and 0 < missing < 1 << 60 else ""
        return Failure(f"the disk is full{rest}", hint=f"What has come is kept. Free that much, then go on: {asked.command}")
    text, hint = _OTHERS.get(kind, _UNKNOWN)
    fill = {"name": "", "said": "", "status": ""} | details | {"repo": asked.repo, "page": asked.page, "revision": asked.revision}
    fill |= {"models": str(paths.MODELS), "hub": asked.hub, "host": urlsplit(asked.hub).hostname or asked.hub, "again": asked.command}
    return Failure(text.format_map(fill).rstrip(": "), hint=hint.format_map(fill))


_GO_ON = "What has come is kept; go on with: {again}"
_OTHERS = {
    "revision": ("{repo} has no revision {revision}", "Its branches, tags and commits: {page}/tree/main"),
    "refused": ("the hub refuses with status {status}: {said}", "See whether {page} can be read in a browser."),
    "server": ("the hub has a fault (status {status}), also when tried again", _GO_ON),
    "dns": ("{host} is not found: no network, or no name service", "See what `getent hosts {host}` says. " + _GO_ON),
    "broken": ("no lasting connection to {host}: {said}", _GO_ON),
    "tls": (
        "the certificate of {host} is not trusted: {said}",
        "Behind a proxy that opens TLS: give its authority to update-ca-certificates.",
    ),
    "not-a-hub": ("what answers at {hub} is no hub: {said}", "Look at the setting engine.hub, or at a proxy that asks for a login."),
    "no-hashes": ("the hub gives no size or hash of {name}, so it could not be checked", "Use another hub: the setting engine.hub."),
    "bad-name": ("{repo} has a file whose name leads out of its folder: {name}", "Do not use this repository."),
    "wrong-bytes": (
        "{name} came with other bytes than the hub says it has",
        "A proxy or a mirror may keep a damaged copy: try later, or another hub (engine.hub). " + _GO_ON,
    ),
    "locked": ("{repo} is being fetched already", "Wait for it, or end it with Ctrl-C where it runs."),
    "disk": (
        "cannot write the model's files: {said}: {name}",
        "All that is below the folder of models must belong to user vllm: chown -R vllm:vllm",
    ),
}
_UNKNOWN = ("the download ended without a word", _GO_ON)


def _refusal(kind: str, asked: HubRequest) -> Failure:
    """Who may read what. Without a token the hub tells nobody whether a model does not exist or is private."""
    name_token = f"put it in a file that only root can read, and name that as engine.hub_token_file in {asked.config}"
    if kind == "token":
        return Failure(f"the hub does not know the token in {asked.token_file}", hint=f"Make a new one at {asked.tokens}.")
    if kind == "gated" and asked.token_file:
        message = f"the account of the token in {asked.token_file} may not read {asked.repo}"
        return Failure(
            message, hint=f"Accept its licence at {asked.page} as that account; a fine-grained token must allow gated repositories."
        )
    if kind == "gated":
        message = f"{asked.repo} is gated: one must accept its licence, and show a token"
        return Failure(message, hint=f"Accept it at {asked.page}, make a read token at {asked.tokens}, {name_token}.")
    private = ", or none that this token may read" if asked.token_file else ", or it is private"
    hint = f"Look whether {asked.page} is the model you mean; capitals count. It is models.{asked.name}.model in {asked.config}."
    if not asked.token_file:
        hint += f"\nIf it is private: make a read token at {asked.tokens}, {name_token}."
    return Failure(f"the hub has no model {asked.repo}{private}", hint=hint)


def _busy(seconds: object, asked: HubRequest, now: datetime) -> Failure:
    if not isinstance(seconds, int | float) or not 0 < seconds < 7 * 86400:
        return Failure("the hub is busy, and does not say for how long", hint=f"What has come is kept; go on in an hour: {asked.command}")
    when = now + timedelta(seconds=seconds + 59)  # rounded up to the minute
    return Failure(
        f"the hub answers that it was asked too often, and wants to be left alone until {when:%H:%M}",
        hint=f"What has come is kept; go on then: {asked.command}"
        + ("" if asked.token_file else "\nThose with a token may ask more often: engine.hub_token_file"),
    )


def _plain(value: object) -> str:
    text = "".join(char for char in str(value) if char.isprintable())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
