"""The results of the measured cells: a table, and one picture of login latency over time per set-up."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from tests.bench.login.summary import Run
from vllm_safe.drill.drill_decision import compare_latency, percentile, share_within
from vllm_safe.drill.login_probes import EVERY

HEAD = (
    "hog",
    "disk",
    "set-up",
    "runs",
    "isol",
    "ssh p50",
    "ssh worst",
    "exec worst",
    "gap",
    "stalled",
    "killed",
    "back",
    "hog/s",
    "of plan",
    "alive",
)
WIDE, HIGH, LEFT, RIGHT, PEAK = 720, 52, 130, 230, 30.0  # sizes of the picture in pixels; PEAK: seconds for the whole height of a panel
COLOURS = {True: "#2a9d5c", False: "#c8362f"}


def table(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """Return a row for each hog, disk and set-up, with medians of its rounds.

    Worst values have two figures: the median of each round's worst / the worst of all rounds.
    """
    rows: list[tuple[str, ...]] = [HEAD]
    for hog, disk in sorted({(run.cell.hog, run.cell.disk) for run in runs if run.cell.setup != "idle"}):
        for setup in dict.fromkeys(run.cell.setup for run in runs):
            same = _of(runs, setup, hog, disk)
            if same:
                rows.append(
                    (hog, str(disk), setup, str(len(same)), *_figures(same, _idle(runs, same), _pace(_of(runs, "plan", hog, disk))))
                )
    return rows


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return the rows as a Markdown table, with a line below the first row."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], ("---",) * len(rows[0]), *rows[1:]))


def _of(runs: Iterable[Run], setup: str, hog: str, disk: int) -> list[Run]:
    """Return the rounds of one row."""
    return [run for run in runs if run.cell.setup == setup and run.cell.disk == disk and run.cell.hog in {hog, "-"}]


def _idle(runs: Iterable[Run], of: Iterable[Run]) -> list[float]:
    """Return for each run the 99th percentile of logins on the idle machine; 0.0 while that has not been measured.

    It is that of the same round, since the host is not equally fast in each; if that is missing, that of all rounds.
    """
    idle = [run for run in runs if run.cell.setup == "idle"]
    bounds = []
    for one in of:
        same = [run for run in idle if run.cell.disk == one.cell.disk]
        same = [run for run in same if run.cell.round == one.cell.round] or same
        bounds.append(percentile([login.took for run in same for login in run.during() if login.good], 99))
    return bounds


def _figures(same: Sequence[Run], idle: Sequence[float], plan: float) -> Iterable[str]:
    def worst(each: Sequence[float]) -> str:
        return f"{statistics.median(each):.1f}/{max(each):.1f}"

    logins = [compare_latency([login.felt for login in run.during()], max(EVERY, usual)) for run, usual in zip(same, idle, strict=True)]
    shares = [share for one, usual in zip(logins, idle, strict=True) if (share := share_within(one, 2 * usual)) is not None]
    yield f"{statistics.median(shares):.1%}" if shares and all(idle) else "-"
    yield f"{statistics.median(percentile(one, 50) for one in logins):.1f}"
    yield worst([_worst(run) for run in same])
    yield worst([run.program for run in same])
    yield worst([run.gap for run in same])
    yield f"{statistics.median(run.stalled for run in same):.0%}"
    killed = [run.bystanders for run in same if run.bystanders is not None]
    yield f"{max(killed):.0f}" if killed else "-"
    yield _back(same, idle)
    pace = _pace(same)
    yield f"{pace:.0f}"
    yield f"{pace / plan:.0%}" if plan else "-"
    alive = [run.alive for run in same if run.alive is not None]
    stuck = f"{len(same) - len(alive)} stuck" if len(same) > len(alive) else ""
    yield f"{sum(alive):.0f}/{len(alive)} {stuck}".strip() if alive else stuck


def _back(same: Sequence[Run], idle: Sequence[float]) -> str:
    """Return the seconds from the command to end the hog until a login took at most twice the idle time; `>` if none did."""
    times = []
    for run, usual in zip(same, idle, strict=True):
        late = [login for login in run.after() if login.good and login.took <= 2 * usual]
        times.append(late[0].at - run.end + late[0].took if late else float("inf"))
    middle = statistics.median(times)
    return f"{middle:.0f}" if middle < float("inf") else ">"


def _pace(same: Sequence[Run]) -> float:
    return statistics.median(run.pace for run in same) if same else 0.0


def picture(runs: Sequence[Run], hog: str, disk: int) -> str:
    """Return an SVG with one panel below another for the set-ups. Each login is a bar from its beginning to its end, as high as long."""
    panels = _middle(run for run in runs if run.cell.disk == disk and run.cell.hog in {hog, "-"})
    span = max((run.end for run in panels.values()), default=60.0) + 10
    body = [
        _text(LEFT, 18, f"Each bar is one login while the model server misbehaves ({hog}, {disk} IOPS): as wide and as high as it took", 13)
    ]
    top = 34
    body.insert(0, '<rect width="100%" height="100%" fill="#fff"/>')
    for name in sorted(panels, key=list(dict.fromkeys(run.cell.setup for run in runs)).index):
        body.append(_text(8, top + HIGH * 0.7, name, 13))
        body.append(f'<line x1="{LEFT}" y1="{top + HIGH}" x2="{LEFT + WIDE}" y2="{top + HIGH}" stroke="#999"/>')
        (usual,) = _idle(runs, [panels[name]])
        for at, took, good in panels[name].logins:
            if at < span:
                x, width, height = LEFT + at / span * WIDE, max(1.0, took / span * WIDE - 1), max(2.0, min(1.0, took / PEAK) * HIGH)
                colour = COLOURS[good and took <= 2 * usual]
                body.append(f'<rect x="{x:.1f}" y="{top + HIGH - height:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>')
        body.append(_text(LEFT + WIDE + 8, top + HIGH * 0.7, _verdict(panels[name]), 13))
        end = LEFT + panels[name].end / span * WIDE
        body.append(f'<line x1="{end:.1f}" y1="{top}" x2="{end:.1f}" y2="{top + HIGH}" stroke="#555" stroke-dasharray="3"/>')
        top += HIGH + 14
    body += [_text(LEFT + second / span * WIDE - 6, top + 4, f"{second} s", 11) for second in range(0, int(span) + 1, 10)]
    body.append(_text(LEFT, top + 24, "green: at most twice as long as when idle; red: longer, or failed; dashed: the hog is ended", 12))
    size = f'width="{LEFT + WIDE + RIGHT}" height="{top + 36}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif">\n' + "\n".join(body) + "\n</svg>\n"


def _middle(runs: Iterable[Run]) -> dict[str, Run]:
    """Return for each set-up the round whose worst login is the median of all rounds, neither the luckiest nor the unluckiest."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.cell.setup, []).append(run)
    return {name: sorted(same, key=_worst)[len(same) // 2] for name, same in found.items()}


def _worst(run: Run) -> float:
    return max((login.felt for login in run.during()), default=0.0)


def _verdict(run: Run) -> str:
    """Return the longest login, and the fate of the model server."""
    words = f"longest {_worst(run):.0f} s"
    fate = {None: "stuck", 1.0: "model runs", 0.0: "model killed"}[run.alive]
    return words if run.cell.hog == "-" else f"{words}, {fate}"


def _text(x: float, y: float, text: str, size: int) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}">{text}</text>'
