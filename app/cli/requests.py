"""What the commands of the market share: options, instants, calls, and how answers are printed."""

import importlib
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from app.cli.rpc import answer_of, ask_nodes
from app.terminal.output import EXIT_USAGE, console, fail, print_json

if TYPE_CHECKING:
    import grpc
    from google.protobuf import timestamp_pb2
    from google.protobuf.message import Message
    from utrn.v1 import types_pb2

Instant = Annotated[str, typer.Option(help="As 2026-11-24T12:00:00Z; left out for now, or at once.")]
Page = Annotated[int, typer.Option(min=1, max=1000, help="How many are asked for in one call.")]
Most = Annotated[int, typer.Option("--limit", min=0, help="How many are shown; 0 for all.")]
PageToken = Annotated[str, typer.Option(help="Go on where another list has ended: its next_page_token.")]
Files = tuple[Path, Path, Path]

# Longer than any answer takes that will come; a node that hangs must not hold a command for ever.
TIMEOUT_S: Final = 30.0


def ask(asked: "Callable[[grpc.aio.Channel], Any]", target: str, tls: Files) -> Any:
    """Return what a call on a stub answers; end with the reason if it is refused."""

    async def awaited(channel: "grpc.aio.Channel") -> Any:
        return await asked(channel)

    return ask_nodes(awaited, target, tls)


def stub_of(request: "Message", channel: "grpc.aio.Channel") -> Any:
    """Return a stub of the service that takes such requests: the only one of their file."""
    file = request.DESCRIPTOR.file
    (service,) = file.services_by_name
    module = importlib.import_module(f"{file.name.removesuffix('.proto').replace('/', '.')}_pb2_grpc")
    return getattr(module, f"{service}Stub")(channel)


def method_of(request: "Message", channel: "grpc.aio.Channel") -> Any:
    """Return the method that a request is for: XyzRequest is what Xyz takes."""
    return getattr(stub_of(request, channel), request.DESCRIPTOR.name.removesuffix("Request"))


def call(request: "Message", target: str, tls: Files) -> Any:
    """Return the answer to a request; end with the reason if it is refused."""
    return ask(lambda channel: method_of(request, channel)(request, timeout=TIMEOUT_S), target, tls)


def request_of(request: "Message", target: str, tls: Files) -> Any:
    """Return the answer to a request.

    Raises:
        grpc.aio.AioRpcError: there is none, or a refusal.
    """

    async def asked(channel: "grpc.aio.Channel") -> Any:
        return await method_of(request, channel)(request, timeout=TIMEOUT_S)

    return answer_of(asked, target, tls)


def moment(text: str) -> "timestamp_pb2.Timestamp | None":
    """Return an instant as it is sent; None if it is left out."""
    from google.protobuf import timestamp_pb2

    if not text:
        return None
    timestamp, instant = timestamp_pb2.Timestamp(), None
    try:
        instant = datetime.fromisoformat(text)
        timestamp.FromDatetime(instant)
    except (ValueError, OverflowError):
        instant = None
    if instant is None or instant.tzinfo is None:
        fail(f"{text}: an instant with its offset is needed, as 2026-11-24T12:00:00Z", code=EXIT_USAGE)
    return timestamp


def instant_text(timestamp: "timestamp_pb2.Timestamp") -> str:
    """Return an instant as people read it, to the millisecond; "-" for none."""
    if not (timestamp.seconds or timestamp.nanos):
        return "-"
    return f"{timestamp.ToDatetime().isoformat(timespec='milliseconds')}Z"


def period_of(period: "types_pb2.EffectivePeriod") -> tuple[str, str, str]:
    """Return since, until and who said so."""
    return instant_text(period.since), instant_text(period.until), period.recorded_by


def pence_of(amount: str) -> int:
    """Return decimal pounds as pence; end with what is wrong with them. What one code carries, the node says."""
    from utrn_client.amounts import BadAmount, parse_pounds

    try:
        return parse_pounds(amount, least=0)
    except BadAmount as bad:
        fail(str(bad), code=EXIT_USAGE)


def pence_option(help_text: str, least: int, most: int) -> Any:
    """Return an option in whole pence: no decimals, no separators, no sign but the minus of a debt."""
    from utrn_client.amounts import BadAmount, parse_pence

    def read(typed: str | int) -> int:
        if isinstance(typed, int):
            return typed
        minus = -1 if least < 0 and typed.startswith("-") else 1
        try:
            return minus * parse_pence(typed[1:] if minus < 0 else typed, least=max(0, least), most=most)
        except BadAmount as bad:
            raise typer.BadParameter(str(bad)) from bad

    return typer.Option(help=help_text, metavar="PENCE", parser=read)


def point_of(text: str) -> bytes:
    """Return a public point; end with what is needed if it is no hex."""
    try:
        return bytes.fromhex(text)
    except ValueError:
        fail("--point: hex is needed, 65 bytes of an uncompressed point of P-256", code=EXIT_USAGE)


def print_result(result: "types_pb2.ChangeResult", *, as_json: bool) -> None:
    """Print what became of a change."""
    if as_json:
        print_json(message_json(result))
    else:
        text = f"done, at revision {result.revision}" if result.changed else "nothing to do: it is so already"
        console.print(text, highlight=False)


def message_json(message: "Message") -> dict[str, Any]:
    """Return a message as JSON with the contract's names: enums by name, instants in ISO 8601, numbers as numbers.

    What is empty, 0 or false is there too, so that every object of a kind has the same keys.
    """
    from google.protobuf.json_format import MessageToDict

    found: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    _as_numbers(found, message)
    return found


def _as_numbers(value: dict[str, Any], message: "Message") -> None:
    """Make numbers of the texts that protobuf writes for 64 bits; none here is above 2^53."""
    from google.protobuf.descriptor import FieldDescriptor

    def mend(found: dict[str, Any], kind: Any) -> None:
        for field in kind.fields:
            one = found.get(field.name)
            if field.message_type is not None:
                for inner in one if isinstance(one, list) else [one]:
                    if isinstance(inner, dict):
                        mend(inner, field.message_type)
            elif field.cpp_type == FieldDescriptor.CPPTYPE_INT64 and isinstance(one, str):
                found[field.name] = int(one)

    mend(value, message.DESCRIPTOR)


def enum_name(number: int, names: type[Any]) -> str:
    """Return the name of a number in an enum of the domain; they have the same numbers as the contract's."""
    try:
        return str(names(number).name).lower()
    except ValueError:
        return str(number)


def choice(text: str, names: Any, option: str) -> int:
    """Return the number of a name; end with the choices if there is none.

    Args:
        text: As it was typed.
        names: An enum of the domain, or some of its members.
        option: Where it was typed.
    """
    known = {name.name.lower(): int(name) for name in sorted(names) if int(name)}
    number = known.get(text.lower().replace("-", "_"))
    if number is None:
        fail(f"{option} {text}: one of {', '.join(known)} is needed", code=EXIT_USAGE)
    return number
