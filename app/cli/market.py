"""What the commands of the market share: options, instants, and how answers are printed."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.asking import ask_nodes
from app.cli.output import EXIT_USAGE, console, fail, print_json

if TYPE_CHECKING:
    import grpc
    from google.protobuf import timestamp_pb2
    from google.protobuf.message import Message
    from utrn.v1 import registry_service_pb2 as pb

TARGET = Annotated[str, typer.Option("--target", help="host:port of nodes, comma between them.")]
CERT = Annotated[Path, typer.Option("--cert", help="PEM file of the caller's certificate.")]
KEY = Annotated[Path, typer.Option("--key", help="PEM file of its private key.")]
CA = Annotated[Path, typer.Option("--ca", help="PEM file of the node's authority.")]
JSON = Annotated[bool, typer.Option("--json", help="One JSON object.")]
Instant = Annotated[str, typer.Option(help="As 2026-11-24T12:00:00Z; left out for now, or at once.")]
Files = tuple[Path, Path, Path]


def ask(call: "Callable[[grpc.aio.Channel], Any]", target: str, tls: Files) -> Any:
    """Return what a call on a stub answers; end with the reason if it is refused."""

    async def awaited(channel: "grpc.aio.Channel") -> Any:
        return await call(channel)

    return ask_nodes(awaited, target, tls)


def registry(method: str, request: "Message", target: str, tls: Files) -> Any:
    """Return the answer of a method of RegistryService."""
    from utrn.v1 import registry_service_pb2_grpc as rpc

    return ask(lambda channel: getattr(rpc.RegistryServiceStub(channel), method)(request), target, tls)


def appointments(method: str, request: "Message", target: str, tls: Files) -> Any:
    """Return the answer of a method of AppointmentService."""
    from utrn.v1 import appointment_service_pb2_grpc as rpc

    return ask(lambda channel: getattr(rpc.AppointmentServiceStub(channel), method)(request), target, tls)


def moment(text: str) -> "timestamp_pb2.Timestamp | None":
    """Return an instant as it is sent; None if it is left out."""
    from google.protobuf import timestamp_pb2

    if not text:
        return None
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        instant = None
    if instant is None or instant.tzinfo is None:
        fail(f"{text}: an instant with its offset is needed, as 2026-11-24T12:00:00Z", code=EXIT_USAGE)
    timestamp = timestamp_pb2.Timestamp()
    timestamp.FromDatetime(instant)
    return timestamp


def instant_text(timestamp: "timestamp_pb2.Timestamp") -> str:
    """Return an instant as people read it, to the millisecond; "-" for none."""
    if not (timestamp.seconds or timestamp.nanos):
        return "-"
    return f"{timestamp.ToDatetime().isoformat(timespec='milliseconds')}Z"


def dates_of(dates: "pb.Dates") -> tuple[str, str, str]:
    """Return since, until and who said so."""
    return instant_text(dates.since), instant_text(dates.until), dates.recorded_by


def print_written(written: "pb.Written", *, as_json: bool) -> None:
    """Print what became of a change."""
    if as_json:
        print_json({"revision": written.revision, "changed": written.changed})
    else:
        text = f"done, at revision {written.revision}" if written.changed else "nothing to do: it is so already"
        console.print(text, highlight=False)


def message_json(message: "Message") -> dict[str, Any]:
    """Return a message as JSON with the contract's names."""
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(message, preserving_proto_field_name=True)


def enum_name(number: int, names: type[Any]) -> str:
    """Return the name of a number in an enum of the domain; they have the same numbers."""
    return str(names(number).name).lower()


def choice(text: str, names: type[Any], option: str) -> int:
    """Return the number of a name; end with the choices if there is none."""
    try:
        return int(names[text.upper().replace("-", "_")])
    except KeyError:
        known = ", ".join(one.name.lower() for one in names if int(one))
        fail(f"{option}: one of {known} is needed", code=EXIT_USAGE)
