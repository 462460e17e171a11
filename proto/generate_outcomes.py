"""Makes the table of outcomes for callers from errors.proto: for Python, for other languages, and for people.

python generate_outcomes.py DESCRIPTOR_SET FOLDER

DESCRIPTOR_SET is what `protoc --include_imports --include_source_info` wrote; FOLDER is the project's. Writes
client/utrn_client/outcomes.py, proto/outcomes.json, and the table between two marks in docs/errors.md. Run by
generate.sh with the generated code on the path; CI fails on a difference.
"""

import json
import sys
from pathlib import Path
from typing import NamedTuple

from google.protobuf import descriptor_pb2
from utrn.v1 import outcome_pb2

_FILE = "utrn/v1/errors.proto"
_PREFIX = "ERROR_REASON_"
_CLASS_PREFIX = "OUTCOME_CLASS_"
# Field numbers of descriptor.proto: FileDescriptorProto.enum_type, EnumDescriptorProto.value.
_ENUM, _VALUE = 5, 2
_NEXT_MAX = 105
_MARK = "<!-- The table is generated from proto/utrn/v1/errors.proto by `make proto`. -->"
_END = "<!-- The end of what is generated. -->"


class Row(NamedTuple):
    """One reason: its gRPC status, what it says about the payment, its cause, and what the caller does next."""

    reason: str
    status: str
    says: str
    cause: str
    next: str


def read_rows(descriptors: descriptor_pb2.FileDescriptorSet) -> list[Row]:
    """Return a row for each value of ErrorReason but the first.

    Raises:
        SystemExit: a value has no whole outcome, or one too long for a line of code.
    """
    file = next(one for one in descriptors.file if one.name == _FILE)
    comments = {tuple(one.path): one.leading_comments for one in file.source_code_info.location}
    rows = []
    for at, value in enumerate(file.enum_type[0].value):
        if not value.number:
            continue
        outcome = value.options.Extensions[outcome_pb2.outcome]
        if not (outcome.says and outcome.status and outcome.next):
            raise SystemExit(f"{_FILE}: {value.name} has no whole outcome")
        if len(outcome.next) > _NEXT_MAX or '"' in outcome.next:
            raise SystemExit(f"{_FILE}: {value.name}: next has at most {_NEXT_MAX} characters, none a quotation mark")
        says = outcome_pb2.OutcomeClass.Name(outcome.says).removeprefix(_CLASS_PREFIX)
        cause = " ".join(comments[(_ENUM, 0, _VALUE, at)].split())
        rows.append(Row(value.name.removeprefix(_PREFIX), outcome.status, says, cause, outcome.next))
    return rows


def python_table(rows: list[Row]) -> str:
    """Return the module of the client kit."""
    lines = [
        '"""What each reason says about the payment, and what to do. Generated from errors.proto; do not edit."""',
        "",
        "from collections.abc import Mapping",
        "from enum import Enum",
        "from typing import Final, NamedTuple",
        "",
        "",
        "class Says(Enum):",
        '    """What a refusal says about the payment behind the call; see OutcomeClass in outcome.proto."""',
        "",
        *(f'    {name} = "{name}"' for name in _classes()),
        "",
        "",
        "class Outcome(NamedTuple):",
        '    """What a reason says about the payment, the name of its gRPC status, and what the caller does next."""',
        "",
        "    says: Says",
        "    status: str",
        "    next: str",
        "",
        "",
        "# By ErrorInfo.reason. A reason that is not here says nothing about the payment.",
        "OUTCOMES: Final[Mapping[str, Outcome]] = {",
    ]
    for row in rows:
        lines += [
            f"    {_quoted(row.reason)}: Outcome(",
            f"        Says.{row.says},",
            f"        {_quoted(row.status)},",
            f"        {_quoted(row.next)},",
            "    ),",
        ]
    return "\n".join([*lines, "}", ""])


def json_table(rows: list[Row]) -> str:
    """Return the table for other languages: an object by reason, and the closed list of those that are not sold."""
    table = {row.reason: {"says": row.says, "status": row.status, "next": row.next} for row in rows}
    return json.dumps({"domain": "utrn.v1", "classes": _classes(), "reasons": table}, indent=2) + "\n"


def markdown_table(rows: list[Row]) -> str:
    """Return the table for people."""
    head = ["| reason | status | says | cause | what the caller does |", "|---|---|---|---|---|"]
    return "\n".join([*head, *(f"| `{r.reason}` | {r.status} | {r.says} | {r.cause} | {r.next} |" for r in rows)])


def replace_table(text: str, table: str) -> str:
    """Return `text` with what stands between the marks replaced.

    Raises:
        ValueError: a mark is missing.
    """
    before, rest = text.split(_MARK)
    _, after = rest.split(_END)
    return f"{before}{_MARK}\n\n{table}\n\n{_END}{after}"


def main() -> None:
    """Read the arguments and write the files."""
    descriptors = descriptor_pb2.FileDescriptorSet.FromString(Path(sys.argv[1]).read_bytes())
    folder, rows = Path(sys.argv[2]), read_rows(descriptors)
    (folder / "client" / "utrn_client" / "outcomes.py").write_text(python_table(rows), encoding="utf-8")
    (folder / "proto" / "outcomes.json").write_text(json_table(rows), encoding="utf-8")
    errors = folder / "docs" / "errors.md"
    errors.write_text(replace_table(errors.read_text(encoding="utf-8"), markdown_table(rows)), encoding="utf-8")


def _classes() -> list[str]:
    return [name.removeprefix(_CLASS_PREFIX) for name, number in outcome_pb2.OutcomeClass.items() if number]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


if __name__ == "__main__":
    main()
