"""The note beside a stop that makes room for another model: `prepare` writes it as root just before, the model's main process reads it.

Without it, a stop tells only that somebody asked systemd for it. Standard library only.
"""

from __future__ import annotations

import time
from pathlib import Path

from vllm_safe.contract.launch_file import LAUNCH_FOLDER
from vllm_safe.contract.small_files import read_regular

ROOM_FOR = "stopping to make room for "  # the beginning of the reason that the main process records; `why` reads the name behind it
_MOST = 256  # bytes: the name of a model
_RECENT = 60.0  # seconds: a note that an interrupted `prepare` left behind says nothing of a later stop


def room_note(name: str) -> Path:
    """Return the path of the note for the model `name`, which has to stop: root:root 0644 in a folder of the group vllm."""
    return LAUNCH_FOLDER / f"{name}.room"


def read_room_note(path: Path) -> str:
    """Return the name of the model that needs the room, or "" if the stop has another reason."""
    try:
        if abs(time.time() - path.lstat().st_mtime) > _RECENT:
            return ""
    except OSError:
        return ""
    return (read_regular(path, _MOST) or b"").decode(errors="replace").strip()
