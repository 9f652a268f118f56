"""The fake hub in a bed: `python3 serve_hub.py SPEC.json`. The file has the repository, the folder to serve, and the faults.

It writes its address to SPEC.json.url once it listens. When SPEC.json.ask exists, it removes that file and writes to SPEC.json.sent how
much of each file it has sent. A fault with `"hold": true` waits until SPEC.json.go exists.
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
    """An event that is set when a file exists."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the file exists."""
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
