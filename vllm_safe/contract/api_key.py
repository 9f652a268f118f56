"""The API key that systemd hands to a unit as a credential (LoadCredential=). It is never in argv, nor in a file that others can read."""

from __future__ import annotations

import os
from pathlib import Path

from vllm_safe.common.errors import Failure

_CREDENTIAL = "api-key"


def read_api_key() -> str:
    """Return the API key of this unit, or "" if it has none. Raises Failure if it cannot be read: serving without it would be worse."""
    if not (folder := os.environ.get("CREDENTIALS_DIRECTORY")):
        return ""
    try:
        return Path(folder, _CREDENTIAL).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise Failure(f"cannot read the API key: {error}") from error
