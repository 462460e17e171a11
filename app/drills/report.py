"""The drills' report: one HTML page without scripts: a table of figures, and the timeline of each run, drawn."""

import html
import statistics
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from app.drills.catalogue import Drill
from app.drills.run import DrillResult

_WIDTH, _LEFT, _ROW = 900, 90, 26
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")
_STYLE = """body{font:14px/1.4 system-ui,sans-serif;margin:2em;max-width:1000px;color:#222}
table{border-collapse:collapse;margin:1em 0}td,th{border:1px solid #ccc;padding:3px 8px;text-align:right}
td:first-child,th:first-child{text-align:left}.bad{color:#b00020;font-weight:600}.good{color:#1b7837}
svg{background:#fafafa;border:1px solid #ddd;margin:.4em 0}"""
KEYS = ("issue_gap_ms", "issue_failed", "delivery_gap_ms", "takeover_ms", "vends", "credited_twice", "lost")


def medians(results: Sequence[DrillResult]) -> dict[str, tuple[float, float]]:
    """Return each figure's median and worst over the runs of one drill."""
    found: dict[str, tuple[float, float]] = {}
    names = {name for result in results for name in result.figures}
    for name in sorted(names):
        values = [value for result in results if (value := result.figures.get(name)) is not None]
        if values:
            found[name] = (statistics.median(values), max(values))
    return found


def html_page(results: Sequence[tuple[Drill, Sequence[DrillResult]]]) -> str:
    """Return the page."""
    parts = [
        f"<!doctype html><meta charset=utf-8><title>UTRN drills</title><style>{_STYLE}</style><h1>UTRN drills</h1>"
    ]
    for drill, runs in results:
        parts.append(f"<h2>{html.escape(drill.name)}: {html.escape(drill.what)}</h2>")
        aims = ", ".join(f"{name} at most {limit:g}" for name, limit in drill.aims.items()) or "every invariant"
        parts.append(f"<p>Aim: {html.escape(aims)}. Runbook: docs/runbooks/{drill.runbook}.md</p>")
        parts.append(_table(runs))
        parts += [_timeline(run) for run in runs]
    return "\n".join(parts)


def markdown_table(results: Iterable[tuple[Drill, Sequence[DrillResult]]]) -> str:
    """Return the table of docs/operating/drills.md: median and worst of each figure that has an aim, and what broke."""
    lines = [
        "| drill | runs | issue gap ms | failed | delivery gap ms | takeover ms | other | twice "
        "| lost | broken | aim |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for drill, runs in results:
        figures = medians(runs)
        other = ", ".join(
            f"{name} {_pair(figures[name])}"
            for name in figures
            if name not in KEYS and name in (*drill.aims, "back_ms")
        )
        broken = sum(len(run.broken) for run in runs)
        missed = sum(bool(run.missed) for run in runs)
        cells = [drill.name, str(len(runs))]
        cells += [
            _pair(figures.get(name)) for name in ("issue_gap_ms", "issue_failed", "delivery_gap_ms", "takeover_ms")
        ]
        cells += [other or "-", _pair(figures.get("credited_twice")), _pair(figures.get("lost")), str(broken)]
        cells.append(f"missed in {missed} of {len(runs)}" if missed else "met")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _pair(values: tuple[float, float] | None) -> str:
    if values is None:
        return "-"
    middle, worst = values
    return f"{middle:g}" if middle == worst else f"{middle:g} ({worst:g})"


def _table(runs: Sequence[DrillResult]) -> str:
    names = [*KEYS, *sorted({name for run in runs for name in run.figures} - set(KEYS))]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("run", *names, "verdict"))
    rows = []
    for run in runs:
        cells = "".join(f"<td>{_shown(run.figures.get(name))}</td>" for name in names)
        bad = [*run.missed, *run.broken]
        verdict = f"<td class=bad>{html.escape('; '.join(bad))}</td>" if bad else "<td class=good>held</td>"
        rows.append(f"<tr><td>{run.run}</td>{cells}{verdict}</tr>")
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _timeline(run: DrillResult) -> str:
    """Draw one run: codes a second, deliveries a second, and who owns how many shards; second 0 is the fault."""
    line = run.timeline
    ends = [one for name in ("issued", "delivered") for one in line[name]]
    if not ends:
        return "<p>nothing was issued</p>"
    first, last = float(min(ends)), float(max(ends))
    scale = (_WIDTH - _LEFT - 10) / max(0.001, last - first)

    def x(second: float) -> float:
        return _LEFT + (min(max(second, first), last) - first) * scale

    drawn = [
        _bars("issued", line["issued"], x, 0, first, last),
        _bars("delivered", line["delivered"], x, 1, first, last),
        _owners(line["owners"], x, first, last),
        f'<line x1="{x(0):.1f}" x2="{x(0):.1f}" y1="0" y2="{8 * _ROW}" stroke="#b00020"/>',
        f'<text x="{x(0) + 3:.1f}" y="10" font-size="10" fill="#b00020">fault</text>',
    ]
    if line["healed"] is not None:
        at = x(line["healed"])
        drawn.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="{8 * _ROW}" stroke="#1b7837"/>')
        drawn.append(f'<text x="{at + 3:.1f}" y="10" font-size="10" fill="#1b7837">healed</text>')
    for second in range(int(first), int(last) + 1):
        where = f'x="{x(second):.1f}" y="{8 * _ROW - 3}"'
        drawn.append(f'<text {where} font-size="9" fill="#888" text-anchor="middle">{second}</text>')
    name = f"run {run.run}: codes, deliveries and owners by second"
    return f'<svg width="{_WIDTH}" height="{8 * _ROW}" role="img" aria-label="{name}">{"".join(drawn)}</svg>'


def _bars(name: str, times: Sequence[float], x: Callable[[float], float], row: int, first: float, last: float) -> str:
    """Draw how many of `times` fall into each tenth of a second."""
    width = 0.1
    counts: dict[int, int] = {}
    for one in times:
        counts[int((one - first) / width)] = counts.get(int((one - first) / width), 0) + 1
    top, height = 14 + row * 2 * _ROW, 2 * _ROW - 8
    most = max(counts.values(), default=1)
    bars = "".join(
        f'<rect x="{x(first + bucket * width):.1f}" width="{max(1.0, x(first + width) - x(first) - 0.5):.1f}" '
        f'y="{top + height * (1 - count / most):.1f}" height="{height * count / most:.1f}" fill="{_COLOURS[row]}"/>'
        for bucket, count in sorted(counts.items())
    )
    del last
    return f'<text x="4" y="{top + height / 2:.0f}" font-size="11">{name}</text>{bars}'


def _owners(owners: Sequence[tuple[float, int, str]], x: Callable[[float], float], first: float, last: float) -> str:
    """Draw each node's number of shards as a band whose height is that number."""
    names = sorted({owner for _, _, owner in owners if owner})
    holds: dict[int, str] = {}
    moments: list[tuple[float, dict[str, int]]] = []
    for second, shard, owner in owners:
        holds[shard] = owner
        counts = {name: sum(hold == name for hold in holds.values()) for name in names}
        moments.append((second, counts))
    moments.append((last, moments[-1][1] if moments else {}))
    drawn, top = [], 14 + 4 * _ROW
    for index, name in enumerate(names):
        y = top + index * (_ROW - 2)
        drawn.append(f'<text x="4" y="{y + 14}" font-size="11">{html.escape(name)}</text>')
        for (begins, counts), (ends, _) in pairwise(moments):
            if counts.get(name) and ends > first:
                height = max(1.5, (_ROW - 6) * counts[name] / max(1, len(holds)))
                where = f'x="{x(begins):.1f}" y="{y + _ROW - 4 - height:.1f}"'
                size = f'width="{max(0.5, x(ends) - x(begins)):.1f}" height="{height:.1f}"'
                drawn.append(f'<rect {where} {size} fill="{_COLOURS[2 + index % 4]}"/>')
    return "".join(drawn)
