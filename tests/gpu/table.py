"""The results of the scenarios as a page of Markdown: `python3 -m tests.gpu.table FILE [TITLE] > tests/gpu/RESULTS.md`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_OURS = ("scenario", "outcome", "seconds")


def main(file: Path, title: str) -> str:
    """Return the page for the lines of JSON that `--out` wrote. If a scenario was run twice, the last run counts."""
    rows: dict[str, Mapping[str, Any]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        rows[row["scenario"]] = row
    lines = ["# What real cards showed", "", title, "", "| scenario | outcome | seconds | what was seen |", "| --- | --- | --- | --- |"]
    for name, row in rows.items():
        seen = "; ".join(f"{key}: {_shown(value)}" for key, value in row.items() if key not in _OURS)
        lines.append(f"| {name} | {row['outcome']} | {row['seconds']:g} | {seen.replace('|', '&#124;')} |")
    return "\n".join(lines)


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items())
    return ", ".join(map(_shown, value)) if isinstance(value, list) else str(value).strip().rpartition("\n")[2]


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), " ".join(sys.argv[2:])))
