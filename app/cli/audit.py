"""`utrn audit`: the audit files of nodes, verified, held against the ledger, and read."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.command import Commands
from app.terminal.output import EXIT_FAILED, console, fail, print_json, print_table

if TYPE_CHECKING:
    from app.node.config import Config
    from app.verification.sales import Found
    from core.gateways.audit_log_reader import Verdict
    from core.ports.audit_anchors import Anchor

app = Commands(help="The audit files: who asked for what, which rule decided, what was sold.")

_Files = Annotated[list[Path], typer.Argument(help="Audit files.")]
_Json = Annotated[bool, typer.Option("--json", help="One JSON object.")]


@app.command("verify")
def verify(
    files: _Files,
    config: Annotated[
        Path | None,
        typer.Option(help="A node's configuration: compare with the ledger too, its anchors and its vends."),
    ] = None,
    as_json: _Json = False,
) -> None:
    """Check that audit files are what was written, and with --config that the ledger's vends are what was sold.

    Without --config a file that was cut off at a block, or written anew as a whole, is not found out.
    """
    if config is None:
        verdicts, problems = _read(files)
        _tell(verdicts, problems, [], None, as_json=as_json)
        return
    from app.node.config import BadConfig, load_config
    from app.verification.sales import SalesCheck
    from cluster.etcd.client import EtcdUnreachable
    from core.domain.errors import LedgerUnavailable

    try:
        loaded = load_config(config)
        anchors, vends, revision = _ledger(loaded)
    except (BadConfig, LedgerUnavailable, EtcdUnreachable) as error:
        fail(getattr(error, "message", str(error)))
    missing = sorted(set(anchors) - {file.name for file in files})
    check = SalesCheck(every_file=not missing)
    verdicts, problems = _read(files, anchors, check)
    own = loaded.node.node_id + "-"
    problems += [
        f"{name}: anchored, and not among the files: name it too, or say where it went"
        for name in missing
        if name.startswith(own) and name[len(own) : len(own) + 8].isdecimal()
    ]
    problems += [
        f"{name}: anchored in a form that this program cannot understand; use a newer one"
        for name, anchor in sorted(anchors.items())
        if anchor is None
    ]
    found = check.compare(vends, revision)
    _tell(verdicts, [*problems, *found.problems], missing, found, as_json=as_json)


def _read(
    files: list[Path], anchors: "dict[str, Anchor | None] | None" = None, check: Any = None
) -> "tuple[dict[str, Verdict], list[str]]":
    """Return what is known of each file, and what is wrong with those that are not what was written."""
    from core.gateways.audit_log_reader import AuditLogReader, BadAuditLog

    verdicts, problems = {}, []
    for file in files:
        anchor = (anchors or {}).get(file.name)
        reader = AuditLogReader(file, anchor)
        try:
            for line in reader:
                if check is not None:
                    check.line(line, b"" if anchor is None else anchor.key)
        except (OSError, BadAuditLog) as error:
            problems.append(str(error))
            continue
        if check is not None:
            check.file(reader.verdict)
        verdicts[str(file)] = reader.verdict
    return verdicts, problems


def _ledger(config: "Config") -> "tuple[dict[str, Anchor | None], list[Any], int]":
    """Return the anchors of every node's files, what every vend key holds, and as of which revision.

    The ledger is read before the files: what it holds is in files that are read now.
    """
    import asyncio

    from cluster.audit.anchors import EtcdAuditAnchors
    from cluster.audit.ledger_scan import all_under_vend_keys
    from cluster.etcd.client import EtcdClient
    from core.gateways.system_clock import SystemClock

    async def read() -> "tuple[dict[str, Anchor | None], list[Any], int]":
        client = EtcdClient(config.etcd)
        try:
            vends, revision = await all_under_vend_keys(client, config.etcd)
            return await EtcdAuditAnchors(client, config.etcd, SystemClock()).all(), vends, revision
        finally:
            await client.close()

    return asyncio.run(read())


def _tell(
    verdicts: "dict[str, Verdict]", problems: list[str], missing: list[str], found: "Found | None", *, as_json: bool
) -> None:
    if as_json:
        print_json(_json(verdicts, problems, missing, found))
        raise typer.Exit(EXIT_FAILED if problems else 0)
    for name, said in verdicts.items():
        console.print(f"{name}: {said.lines} lines, the chain holds{_ending(said)}", highlight=False)
    if found is not None:
        console.print(_compared(found, missing), highlight=False)
    if problems:
        fail("\n".join(problems))


def _json(
    verdicts: "dict[str, Verdict]", problems: list[str], missing: list[str], found: "Found | None"
) -> dict[str, Any]:
    files = {
        name: {
            "lines": one.lines,
            "lost": one.lost,
            "unanchored": one.unanchored,
            "torn": one.torn,
            "complete_until": one.complete_until,
            "state": "" if one.state is None else one.state.name.lower(),
        }
        for name, one in verdicts.items()
    }
    told: dict[str, Any] = {
        "ok": not problems,
        "problems": problems,
        "files": files,
        "anchored": sorted(Path(name).name for name, one in verdicts.items() if one.state is not None),
        "not_here": missing,
    }
    if found is not None:
        told["vends"] = {
            "compared": found.compared,
            "without_digits": found.without_digits,
            "excused": found.excused,
            "not_judged": found.not_judged,
        }
    return told


def _ending(said: "Verdict") -> str:
    """Return what the ledger says of how a file ends, and what may be missing."""
    from core.ports.audit_anchors import AnchorState

    lost = f"; {said.lost} lines could not be kept" if said.lost else ""
    match said.state:
        case None:
            return f", not anchored{lost}"
        case AnchorState.FINISHED:
            return f", anchored to its end: nothing is missing{lost}"
        case AnchorState.DIED:
            tail = f"; {said.unanchored} lines come after that, which the node had not anchored" * bool(said.unanchored)
            return f", anchored; its node died: nothing up to {said.complete_until} is missing{tail}{lost}"
        case AnchorState.OPEN:
            tail = f"; {said.unanchored} lines come after that" * bool(said.unanchored)
            return f", anchored; its node runs, or died: nothing up to {said.complete_until} is missing{tail}{lost}"
        case _:
            return f", anchored; {said.unanchored} lines come after that{lost}"


def _compared(found: "Found", missing: list[str]) -> str:
    parts = [f"{found.compared} vends are as they were sold"]
    if found.without_digits:
        parts.append(f"of {found.without_digits} of them no file tells the digits")
    if found.excused:
        parts.append(f"{found.excused} more are of the last seconds of a node that died, and no file knows them")
    if found.not_judged:
        why = f"files that are not named may: {', '.join(missing)}" if missing else "their node may write them yet"
        parts.append(f"{found.not_judged} more are known to no file named here ({why})")
    return "; ".join(parts)


@app.command("show")
def show(
    files: _Files,
    subject: Annotated[str, typer.Option(help="Only about this meter.")] = "",
    caller: Annotated[str, typer.Option(help="Only asked by this participant.")] = "",
    refused: Annotated[bool, typer.Option(help="Only what was refused.")] = False,
    as_json: _Json = False,
) -> None:
    """Show decisions and sales, oldest first. A file whose chain does not hold is not shown."""
    from core.gateways.audit_log_reader import AuditLogReader, BadAuditLog

    try:
        found = [
            one
            for file in files
            for one in AuditLogReader(file)
            if subject in ("", one["subject"]) and caller in ("", one["caller"])
            if not refused or one["outcome"] not in ("allowed", "sold", "unknown")
        ]
    except (OSError, BadAuditLog) as error:
        fail(str(error))
    names = ("at", "caller", "act", "subject", "pence", "outcome", "rule")
    if as_json:
        print_json({"decisions": found})
    else:
        print_table("Decisions", names, [[one.get(name, "") for name in names] for one in found])
