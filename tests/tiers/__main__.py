"""`python -m tests.tiers vm nspawn`: the tiers named, side by side. Ctrl-C ends them and their machines; status 130."""

from __future__ import annotations

import sys

from tests.tiers.plan import TIERS
from tests.tiers.runner import run


def main(names: list[str]) -> int:
    """Run the tiers named. Returns the exit status."""
    unknown = [name for name in names if name not in TIERS]
    if unknown or not names:
        print(f"usage: python -m tests.tiers {' '.join(TIERS)} (one or more of these)", file=sys.stderr)
        return 2
    return run([TIERS[name] for name in dict.fromkeys(names)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
