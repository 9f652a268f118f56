"""The administrator's own arguments for earlyoom."""

from __future__ import annotations

from pathlib import Path

PACKAGE_DEFAULT = "-r 3600"  # the value in the file as Debian ships it


def admin_arguments(root: Path = Path("/")) -> str | None:
    """Return EARLYOOM_ARGS of /etc/default/earlyoom, which the drop-in of vllm-safe overrides; None if it is unset or Debian's default."""
    try:
        text = (root / "etc/default/earlyoom").read_text(errors="replace")
    except OSError:
        return None
    values = [line.partition("=")[2].strip() for line in map(str.strip, text.splitlines()) if line.startswith("EARLYOOM_ARGS=")]
    value = values[-1] if values else ""  # systemd uses the last assignment, too
    if value[:1] in {'"', "'"} and value.endswith(value[0]):
        value = value[1:-1]
    return None if value in {"", PACKAGE_DEFAULT} else value
