"""Messages for failures of the hub: the kinds are those of models/as_engine/hub_download/hub_trouble.py."""

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
WITHOUT_HUB = "Or give a folder with its config.json: vllm-safe plan ./FOLDER"
_LONGEST = 200  # characters that are shown of a text from the hub, or from a program run as another user


@dataclass(frozen=True)
class HubRequest:
    """A request to a hub. `config`: the configuration file; `token_file`: its engine.hub_token_file, or "".

    name: the model, or ORG/NAME itself where the configuration has none; verb: the command that asks, fetch or plan.
    """

    name: str
    repo: str
    hub: str = DEFAULT_HUB
    revision: str = ""
    config: str = ""
    token_file: str = ""
    verb: str = "fetch"

    @property
    def command(self) -> str:
        """The command that asks again, and resumes a download."""
        return f"vllm-safe {self.verb} {self.name}" + (f" --revision {self.revision}" if self.revision else "")

    def go_on(self, when: str = "") -> str:
        """Return how to go on after a failure that passes, as a sentence. when: such as "in an hour", or "" for at once."""
        if self.verb == "fetch":
            return f"Received data is kept; resume {f'{when} ' if when else ''}with: {self.command}"
        return f"Run {when or 'again'}: {self.command}   {WITHOUT_HUB}"

    @property
    def page(self) -> str:
        """URL of the model's page at the hub."""
        return f"{self.hub.rstrip('/')}/{self.repo}"

    @property
    def tokens(self) -> str:
        """URL at which an account creates tokens."""
        return f"{self.hub.rstrip('/')}/settings/tokens"


def hub_failure(trouble: Mapping[str, Any], asked: HubRequest, now: datetime) -> Failure:
    """Return the failure with its hint. The details come from a program of user vllm and are not trusted."""
    kind = str(trouble.get("trouble", ""))
    details = {key: _plain(value) for key, value in trouble.items()}
    if kind in {"gated", "token", "missing"}:
        return _refusal(kind, asked)
    if kind == "busy":
        return _busy(trouble.get("seconds"), asked, now)
    if kind == "disk-full":
        missing = trouble.get("missing")
        rest = f": {format_size(missing)} are still missing" if isinstance(missing, int) and 0 < missing < 1 << 60 else ""
        return Failure(f"the disk is full{rest}", hint=f"Received data is kept. Free that much space, then resume with: {asked.command}")
    text, hint = _OTHERS.get(kind, _UNKNOWN)
    fill = {"name": "", "said": "", "status": ""} | details | {"repo": asked.repo, "page": asked.page, "revision": asked.revision}
    fill |= {"models": str(paths.MODELS), "hub": asked.hub, "host": urlsplit(asked.hub).hostname or asked.hub, "go_on": asked.go_on()}
    return Failure(text.format_map(fill).rstrip(": "), hint=hint.format_map(fill))


_GO_ON = "{go_on}"
_OTHERS = {
    "revision": ("{repo} has no revision {revision}", "For its branches, tags and commits see {page}/tree/main"),
    "refused": ("the hub refused the request (HTTP {status}): {said}", "Check whether {page} opens in a browser."),
    "server": ("the hub has an internal error (HTTP {status}), also after retries", _GO_ON),
    "dns": ("the name {host} cannot be resolved: no network or no DNS", "Check `getent hosts {host}`. " + _GO_ON),
    "broken": ("the connection to {host} keeps failing: {said}", _GO_ON),
    "tls": (
        "the certificate of {host} is not trusted: {said}",
        "Behind a proxy that intercepts TLS, install its CA certificate with update-ca-certificates.",
    ),
    "not-a-hub": ("the server at {hub} is not a hub: {said}", "Check the setting engine.hub, or a proxy that asks for a login."),
    "no-hashes": ("the hub provides no size or hash of {name}, so it could not be verified", "Use another hub (engine.hub)."),
    "bad-name": ("{repo} has a file whose name leads out of its folder: {name}", "Do not use this repository."),
    "wrong-bytes": (
        "the checksum of {name} does not match that of the hub",
        "A proxy or a mirror may have a damaged copy: try later, or use another hub (engine.hub). " + _GO_ON,
    ),
    "locked": ("{repo} is being fetched already", "Wait for it, or stop it with Ctrl-C where it runs."),
    "disk": (
        "cannot write the model's files: {said}: {name}",
        "Everything in the folder of models must belong to user vllm: chown -R vllm:vllm",
    ),
}
_UNKNOWN = ("the download ended without an error message", _GO_ON)


def _refusal(kind: str, asked: HubRequest) -> Failure:
    """Return the failure on missing access. Without a token the hub does not tell a missing model from a private one."""
    name_token = f"put it in a file that only root can read, and set engine.hub_token_file in {asked.config}"
    if kind == "token":
        return Failure(f"the hub rejects the token in {asked.token_file} as invalid", hint=f"Create a new one at {asked.tokens}.")
    if kind == "gated" and asked.token_file:
        message = f"the account of the token in {asked.token_file} has no access to {asked.repo}"
        return Failure(
            message, hint=f"Accept its licence at {asked.page} with that account; a fine-grained token must allow gated repositories."
        )
    if kind == "gated":
        message = f"{asked.repo} is gated: it requires an accepted licence and a token"
        return Failure(message, hint=f"Accept it at {asked.page}, create a read token at {asked.tokens}, {name_token}.")
    private = ", or the token has no access to it" if asked.token_file else ", or it is private"
    hint = f"Check that {asked.page} is the model you mean (case matters)."
    if asked.name != asked.repo:
        hint += f" It is models.{asked.name}.model in {asked.config}."
    if not asked.token_file:
        hint += f"\nIf it is private, create a read token at {asked.tokens}, {name_token}."
    return Failure(f"the hub has no model {asked.repo}{private}", hint=hint)


def _busy(seconds: object, asked: HubRequest, now: datetime) -> Failure:
    if not isinstance(seconds, int | float) or not 0 < seconds < 7 * 86400:
        return Failure("rate-limited by the hub (HTTP 429)", hint=asked.go_on("in an hour"))
    when = now + timedelta(seconds=seconds + 59)  # rounded up to the minute
    return Failure(
        f"rate-limited by the hub (HTTP 429); retry after {when:%H:%M}",
        hint=asked.go_on("then") + ("" if asked.token_file else "\nThe limit is higher with a token: engine.hub_token_file"),
    )


def _plain(value: object) -> str:
    text = "".join(char for char in str(value) if char.isprintable())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
