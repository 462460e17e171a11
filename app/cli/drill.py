"""`utrn drill`: break one thing in a running cluster, and see what callers saw of it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.command import Commands
from app.terminal.output import EXIT_FAILED, EXIT_USAGE, console, end_on_sigterm, errors, fail, print_json, print_table

if TYPE_CHECKING:
    from app.drills.catalogue import Drill
    from app.drills.run import DrillPlan, DrillResult

app = Commands(help="Failover drills: real processes, steady load, one fault, the audit.")

_Json = Annotated[bool, typer.Option("--json", help="One JSON object a run.")]


@app.command("list")
def list_drills(as_json: _Json = False) -> None:
    """Show every drill and what is to be seen."""
    from app.drills.catalogue import DRILLS

    if as_json:
        for drill in DRILLS:
            print_json({"drill": drill.name, "what": drill.what, "aims": dict(drill.aims), "runbook": drill.runbook})
        return
    rows = [(one.name, one.what, _aims(one), f"docs/runbooks/{one.runbook}.md") for one in DRILLS]
    print_table("Drills", ("drill", "what it breaks", "aim", "runbook"), rows)


@app.command("run")
def run(
    names: Annotated[list[str], typer.Argument(help="Drills, or `all`.")],
    runs: Annotated[int, typer.Option(min=1, max=1000, help="How often each.")] = 1,
    rate: Annotated[float, typer.Option(min=1, max=2000, help="Sales a second.")] = 60.0,
    seed: Annotated[int, typer.Option(help="Of sales and of random faults; run N of a seed is always the same.")] = 1,
    html: Annotated[Path | None, typer.Option(help="Write the report with the timelines here.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the table of medians and worst cases here.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Leave states and logs in this folder.")] = None,
    as_json: _Json = False,
) -> None:
    """Run drills. Exit code 1 if a promise was broken or an aim missed, 2 if a drill is not known."""
    from app.drills.catalogue import DRILLS, drill_named
    from app.drills.report import html_page, markdown_table
    from app.drills.run import DrillPlan

    end_on_sigterm()
    try:
        drills = list(DRILLS) if names == ["all"] else [drill_named(name) for name in names]
    except KeyError as error:
        fail(f"{error.args[0]!r} is no drill; `utrn drill list` shows them", code=EXIT_USAGE)
    plan = DrillPlan(rate=rate, seed=seed, keep=keep)
    results = [(drill, [_run(drill, plan, number, as_json=as_json) for number in range(runs)]) for drill in drills]
    if html is not None:
        html.write_text(html_page(results), encoding="utf-8")
    if markdown is not None:
        markdown.write_text(markdown_table(results), encoding="utf-8")
    if not as_json:
        _show(results)
    if any(one.broken or one.missed for _, found in results for one in found):
        raise typer.Exit(EXIT_FAILED)


def _run(drill: "Drill", plan: "DrillPlan", number: int, *, as_json: bool) -> "DrillResult":
    from app.devstack.files import StackFailed
    from app.drills.run import run_drill

    try:
        with errors.status(f"{drill.name}, run {number}") as status:
            result = run_drill(
                drill, plan, number, say=lambda what: status.update(f"{drill.name}, run {number}: {what}")
            )
    except (StackFailed, PermissionError, FileNotFoundError) as error:
        fail(f"{drill.name}: {error}")
    if as_json:
        print_json(result.as_json())
    return result


def _show(results: "list[tuple[Drill, list[DrillResult]]]") -> None:
    from app.drills.report import KEYS

    rows = []
    for drill, runs in results:
        for one in runs:
            verdict = "; ".join([*one.missed, *one.broken[:3]]) or "held"
            values = [("-" if one.figures.get(key) is None else f"{one.figures[key]:g}") for key in KEYS]
            rows.append((drill.name, one.run, *values, verdict))
    print_table("Drills", ("drill", "run", *KEYS, "verdict"), rows)
    for _, runs in results:
        for one in runs:
            for finding in one.broken[:20]:
                console.print(
                    f"BROKEN {one.drill} run {one.run}: {finding}", style="red", markup=False, highlight=False
                )


def _aims(drill: "Drill") -> str:
    return ", ".join(f"{name} <= {limit:g}" for name, limit in drill.aims.items()) or "every invariant"
