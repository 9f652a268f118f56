"""A hub in a bed: `python3 serve_hub.py SPEC.json`, which has the repository, the folder that it serves, and the faults.

Writes its address to SPEC.json.url once it listens, and how much of each file it sent to SPEC.json.sent whenever there is a SPEC.json.ask,
which it removes. A fault with `"hold": true` waits until SPEC.json.go exists.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
Fault, Hub = (getattr(__import__("hub"), name) for name in ("Fault", "Hub"))


class Gate(threading.Event):
    """An event that happens when a file appears."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the file."""
        end = time.monotonic() + (timeout or 0)
        while not self._path.exists() and time.monotonic() < end:
            time.sleep(0.02)
        return self._path.exists()


def main(spec: Path) -> None:
    """Serve until killed."""
    values = json.loads(spec.read_text())
    folder = Path(values["folder"])
    files = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    hub = Hub(values["repo"], files, gated=values.get("gated", False), token=values.get("token", ""))
    for fault in values.get("faults", []):
        hold = Gate(Path(f"{spec}.go")) if fault.pop("hold", False) else None
        hub.faults.append(Fault(**fault, hold=hold))
    with hub:
        Path(f"{spec}.url").write_text(hub.url)
        while True:
            time.sleep(0.05)
            if (ask := Path(f"{spec}.ask")).exists():
                Path(f"{spec}.sent").write_text(json.dumps({name: hub.sent(Path(name).name) for name in files}))
                ask.unlink()


main(Path(sys.argv[1]))
