"""python -m tests.ends [--at CHECKOUT]...: print the table of ends (right, vague or misleading) for this checkout and for older ones."""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.ends.judge import CASES, HERE, faults, grade, take, with_one_voice

GRADES = ("right", "vague", "misleading")


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(prog="python -m tests.ends", description=__doc__)
    parser.add_argument("--at", action="append", default=[], type=Path, metavar="CHECKOUT", help="another one, before this")
    checkouts = [*parser.parse_args().at, HERE]
    titles = [_title(checkout) for checkout in checkouts]
    results = [take(CASES, checkout) for checkout in checkouts]
    print(f"| end | source | {' | '.join(titles)} |\n|{' --- |' * (len(checkouts) + 2)}")  # noqa: T201 - printing is the purpose of the command
    for name, case in CASES.items():
        cells = [_cell(case, answers[name]) for answers in results]
        print(f"| {name}{' (found)' if case.get('found') else ''} | {case['source']} | {' | '.join(cells)} |")  # noqa: T201
    for what, names in (("all", list(CASES)), ("found", [name for name, case in CASES.items() if case.get("found")])):
        for title, answers in zip(titles, results, strict=True):
            grades = [grade(CASES[name], answers[name]) for name in names]
            sums = ", ".join(f"{grades.count(one)} {one}" for one in GRADES)
            voice = sum(with_one_voice(answers[name]) for name in names)
            print(f"\n{title}, {what} {len(names)}: {sums}; {voice} with one voice (Status:, journal, why)")  # noqa: T201


def _title(checkout: Path) -> str:
    for line in (checkout / "vllm_safe/__init__.py").read_text().splitlines():
        if line.startswith("__version__"):
            return line.split('"')[1] + (" (this)" if checkout == HERE else "")
    return str(checkout)


def _cell(case: dict[str, object], answer: dict[str, object]) -> str:
    wrong = "; ".join(faults(case, answer)[:3]).replace("|", "\\|")
    return grade(case, answer) + (f": {wrong}" if wrong else "")


if __name__ == "__main__":
    main()
