"""`utrn demo`: the main job on one machine, with figures a person can follow."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.terminal.output import EXIT_FAILED, console, end_on_sigterm, errors, fail, print_json, print_table

if TYPE_CHECKING:
    from app.workloads.demo import DemoResult


def demo(
    vends: Annotated[int, typer.Option(min=10, max=100_000, help="How many sales.")] = 2400,
    meters: Annotated[int, typer.Option(min=2, max=10_000, help="Over how many meters.")] = 200,
    seed: Annotated[int, typer.Option(help="Of sales and misbehaviour.")] = 1,
    keep: Annotated[Path | None, typer.Option(help="Leave state and logs in this folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Start three etcd, three nodes and the sandbox; sell over a bad network; kill a node; audit to the penny."""
    from app.devstack.files import StackFailed
    from app.workloads.demo import DemoPlan, run_demo

    end_on_sigterm()
    plan = DemoPlan(vends=vends, meters=meters, seed=seed)
    try:
        with tempfile.TemporaryDirectory(prefix="utrn-demo-") as scratch:
            result = run_demo(plan, keep or Path(scratch), errors, quiet=as_json)
    except (StackFailed, FileNotFoundError) as error:
        fail(str(error))
    if as_json:
        print_json({**result.figures, "broken": result.broken})
    else:
        _show(result)
    if result.broken:
        raise typer.Exit(EXIT_FAILED)


def _show(result: "DemoResult") -> None:
    from app.workloads.demo import reasons

    figures = result.figures
    print_table(
        "What happened",
        ("", ""),
        [
            ("requests", f"{figures['requests']} ({reasons(figures['failed_calls'])}; {figures['replayed']} replayed)"),
            ("distinct vends", figures["distinct_vends"]),
            ("codes issued", f"{figures['codes_issued']} ({figures['vends_per_s']} vends/s)"),
            ("known to be applied", figures["applied"]),
            ("credited at meters", f"{figures['credited']} ({figures['credited_by_keypad']} by keypad)"),
            ("refused by meters", reasons(figures["refused"])),
            ("to be entered by hand", f"{figures['enter_by_hand']}, and entered"),
            ("never asked to be sent", f"{figures['not_requested']}, in two steps"),
            ("open cases", figures["open_cases"]),
            ("still owed", figures["owed"]),
            ("duplicates refused by meters", figures["duplicates_refused_by_meters"]),
            (
                "after kill -9 of an owner",
                f"{figures['takeover_ms']} ms until its shards were owned again; "
                f"{figures['issue_gap_ms']} ms the longest without a code",
            ),
            ("credited twice / lost", f"{figures['credited_twice']} / {figures['lost']}"),
        ],
    )
    print_table(
        "How long it took, ms", ("stage", "p50", "p99"), [(n, f"{a:.1f}", f"{b:.1f}") for n, a, b in result.stages]
    )
    taken, refused = figures["taken_pence"], figures["refused_pence"]
    console.print(
        f"money taken {taken / 100:.2f} - refused by meters {refused / 100:.2f} = "
        f"{figures['expected_pence'] / 100:.2f}; money credited {figures['credited_pence'] / 100:.2f}",
        highlight=False,
        soft_wrap=True,
    )
    for sentence in result.broken[:50]:
        console.print(f"BROKEN {sentence}", style="red", markup=False, highlight=False)
    if not result.broken:
        console.print("Every code was committed once, and every meter credited once.", style="green")
