"""What the admin wrote for earlyoom."""

from __future__ import annotations

from pathlib import Path

PACKAGE_DEFAULT = "-r 3600"  # what Debian's own file says as it comes


def admin_arguments(root: Path = Path("/")) -> str | None:
    """EARLYOOM_ARGS of /etc/default/earlyoom, which our drop-in overrides; None if there is none beyond the package's default."""
    try:
        text = (root / "etc/default/earlyoom").read_text(errors="replace")
    except OSError:
        return None
    values = [line.partition("=")[2].strip() for line in map(str.strip, text.splitlines()) if line.startswith("EARLYOOM_ARGS=")]
    value = values[-1] if values else ""  # systemd takes the last, too
    if value[:1] in {'"', "'"} and value.endswith(value[0]):
        value = value[1:-1]
    return None if value in {"", PACKAGE_DEFAULT} else value
