"""The book of the commands that make an id: `utrn vend issue`, `vend deliver-external`, `credit request`.

An id is in the book, with what was asked under it, before a node is asked, and leaves it with the final answer. The
same command again takes up what is open; it never makes a second id for the same payment.
"""

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn, Protocol

import typer

from app.cli.command import Commands
from app.cli.requests import (
    Files,
    request_of,
)
from app.cli.rpc import check_certificates, check_target, refusal_json, told
from app.terminal.output import EXIT_FAILED, EXIT_NO_ANSWER, EXIT_USAGE, console, errors, fail, print_json

if TYPE_CHECKING:
    import grpc
    from google.protobuf.message import Message
    from utrn_client.verdict import Failure, Verdict

app = Commands(help="What commands have asked for and have no final answer to.")

SALES = Annotated[Path | None, typer.Option("--sales", help="The book of what is open; else one in the user's folder.")]
NEW_ID = Annotated[bool, typer.Option("--new-id", help="Though the same is open: a second one, with an id of its own.")]
GIVEN_ID = Annotated[
    str, typer.Option("--transaction-id", help="To repeat what was asked under this id, here or elsewhere.")
]

# A command that has the book is done with it within its time-out.
_WAIT_S: Final = 35.0
_ID_BITS: Final = 74


class Judge(Protocol):
    """One of the rules of utrn_client.verdict."""

    def __call__(self, failure: "Failure", *, repeat: bool) -> "Verdict":
        """Return what a failed call says."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a command asks for: the method, the request without its id, and how it is compared with what is open.

    Attributes:
        command: As it is typed, such as "vend issue --deliver".
        method: Of utrn.v1.
        content: What makes it the same payment; no code in it.
        judge: What a failure says of it: a sale's rule, or that of a request without a payment.
        paid: A consumer paid for it: a final refusal means that the money may go back.
    """

    command: str
    method: str
    content: Mapping[str, str | int]
    judge: "Judge"
    paid: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """What is open in the book: who asked whom for what, and when it began (ISO 8601)."""

    transaction_id: str
    command: str
    caller: str
    cluster: str
    content: Mapping[str, str | int]
    at: str


class CommandBook:
    """The book in a file of JSON lines, for one command at a time."""

    def __init__(self, path: Path) -> None:
        """Open the book, and make its file if there is none; end the command if the file cannot be used."""
        from utrn_client.book_file import BookFile, BookInUse

        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file: BookFile = BookFile(path, wait_s=_WAIT_S)
        except (BookInUse, OSError) as error:
            fail(f"--sales {path}: {error}; nothing was asked", code=EXIT_USAGE)
        self._open: dict[str, Open] = {}
        for number, entry in self._file.lines:
            self._take(number, entry)
        for damage in self._file.damaged:
            errors.print(f"{path}, line {damage.line} is set aside: {damage.why}", highlight=False, soft_wrap=True)

    def open(self) -> list[Open]:
        """Return what is open, oldest first."""
        return list(self._open.values())

    def find(self, transaction_id: str) -> Open | None:
        """Return what is open under an id."""
        return self._open.get(transaction_id)

    def begin(self, one: Open) -> None:
        """Store a request before a node is asked; end the command if the request cannot be stored."""
        begin = {name: getattr(one, name) for name in Open.__slots__} | {"content": dict(one.content)}
        self._write({"begin": begin}, f"nothing was asked under {one.transaction_id}")
        self._open[one.transaction_id] = one

    def end(self, transaction_id: str, outcome: str) -> None:
        """Store that a request has its final answer."""
        meaning = f"{transaction_id} has its answer and stays in the book"
        self._write({"end": transaction_id, "outcome": outcome}, meaning)
        self._open.pop(transaction_id, None)

    def close(self) -> None:
        """Close the book's file, so that the next command can open it."""
        self._file.close()

    def _write(self, entry: dict[str, object], meaning: str) -> None:
        from utrn_client.book_file import BookNotWritten

        try:
            self._file.append(entry, meaning=meaning)
        except BookNotWritten as error:
            fail(str(error), code=EXIT_NO_ANSWER)

    def _take(self, number: int, entry: dict[str, Any]) -> None:
        begin, end = entry.get("begin"), entry.get("end")
        if isinstance(end, str):
            self._open.pop(end, None)
        elif isinstance(begin, dict) and isinstance(begin.get("content"), dict) and _texts(begin):
            one = Open(**{name: begin[name] for name in Open.__slots__})
            self._open.setdefault(one.transaction_id, one)
        else:
            self._file.set_aside(number, "neither the begin nor the end of a command's request")


def carry_out(
    asked: Asked,
    request: Callable[[str, bool], "Message"],
    tell: Callable[[Any], None],
    *,
    given: str,
    new_id: bool,
    sales: Path | None,
    target: str,
    tls: Files,
) -> None:
    """Make a request under an id of the book, print the answer, close the request; end the command without an answer.

    Args:
        asked: What is asked for.
        request: Makes the message of an id, and of whether it was asked under that id before.
        tell: Prints the answer.
        given: The id, if it was typed.
        new_id: Make a new id though the same is open.
        sales: The book's file; None for the user's.
        target: host:port of nodes.
        tls: PEM files.
    """
    import grpc

    check_target(target)
    check_certificates(*tls)
    with _no_refusal_by_accident(), closing(CommandBook(sales or default_book())) as book:
        transaction_id, repeat = _id_for(asked, book, given=given, new_id=new_id, tls=tls)
        try:
            reply = request_of(request(transaction_id, repeat), target, tls)
        except grpc.aio.AioRpcError as error:
            _end_without(asked, error, book, transaction_id, repeat=repeat)
        tell(reply)
        # Nothing may be left in a buffer: what is closed here is not told again.
        console.file.flush()
        book.end(transaction_id, "done")


@contextmanager
def _no_refusal_by_accident() -> Iterator[None]:
    """Have whatever ends the command otherwise than by its own word end it as "nobody knows".

    A closed pipe, Ctrl-C and a mistake of this program would end it with 1, as a final refusal does.
    """
    try:
        yield
    except typer.Exit:
        raise
    except BaseException as error:
        if isinstance(error, SystemExit) and error.code != EXIT_FAILED:
            raise
        # The screen may be what is gone.
        with suppress(OSError, SystemExit):
            told_of = f"{type(error).__name__}: {error}; {_again('what was asked for')}"
            errors.print(told_of, style="red", highlight=False, soft_wrap=True)
        raise typer.Exit(EXIT_NO_ANSWER) from error


def _again(what: str) -> str:
    return f"{what} stays open, it may have been done: repeat the same command, which takes it up"


def _id_for(asked: Asked, book: CommandBook, *, given: str, new_id: bool, tls: Files) -> tuple[str, bool]:
    """Return the id to ask under, which is in the book, and whether it may have been asked under before."""
    mine = _open_of(asked, tls)
    alike = [one for one in book.open() if _is_same(one, mine)]
    same = [one for one in alike if one.cluster == mine.cluster]
    if given:
        known = book.find(given)
        if known is not None and not (_is_same(known, mine) and known.cluster == mine.cluster):
            text = f"--transaction-id {given}: open with other content: one payment, one id; leave it out"
            fail(text, code=EXIT_USAGE)
        if known is None:
            book.begin(_with_id(mine, given))
        return given, True
    if same and not new_id:
        text = f"transaction_id {same[0].transaction_id}: taken up, open since {same[0].at}; --new-id for a second one"
        errors.print(text, highlight=False, soft_wrap=True)
        return same[0].transaction_id, True
    if alike and not new_id:
        # An authority that was renewed, or another cluster: nobody here can tell, and a second id may be a second sale.
        text = (
            f"transaction_id {alike[0].transaction_id}: the same is open since {alike[0].at}, asked with another "
            "--ca: give that one to take it up, or --new-id if this is another payment; nothing was asked"
        )
        fail(text, code=EXIT_USAGE)
    made = new_transaction_id()
    book.begin(_with_id(mine, made))
    text = f"transaction_id {made}: if no answer comes, the same command takes it up"
    errors.print(text, highlight=False, soft_wrap=True)
    return made, False


def _end_without(
    asked: Asked, error: "grpc.aio.AioRpcError", book: CommandBook, transaction_id: str, *, repeat: bool
) -> NoReturn:
    """End the command with what its failure means: refused for good, or still open under its id."""
    from utrn_client.verdict import Verdict, failure_of

    failure = failure_of(error)
    verdict = asked.judge(failure, repeat=repeat)
    if verdict is Verdict.NOT_SOLD:
        book.end(transaction_id, failure.reason)
        money = ": not sold, the money may go back" if asked.paid else ""
        text = f"{told(error)}; {transaction_id} is closed as refused{money}"
        fail(text, refusal=refusal_json(error, final=True))
    again = _again(transaction_id)
    if verdict is Verdict.ASK_OPERATOR:
        fail(f"{told(error)}; {again}", code=EXIT_NO_ANSWER, refusal=refusal_json(error, final=False))
    text = f"{told(error, advice=again)}; if that does not help, ask the operator"
    fail(text, code=EXIT_NO_ANSWER, refusal=refusal_json(error, advice=again, final=False))


def new_transaction_id() -> str:
    """Return a new transaction id."""
    from core.domain.transaction_id import make_transaction_id
    from core.gateways.system_clock import SystemClock

    return make_transaction_id(int(SystemClock().now().timestamp() * 1000), secrets.randbits(_ID_BITS))


def default_book() -> Path:
    """Return the user's book: in the folder of XDG_STATE_HOME, else in ~/.local/state."""
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if Path(state).is_absolute() else Path.home() / ".local" / "state") / "utrn" / "sales.jsonl"


def digest(text: str) -> str:
    """Return what the book keeps of a code: enough to compare, not enough to spend."""
    return hashlib.sha256(text.encode()).hexdigest()


@app.command("list")
def list_open(
    sales: SALES = None, as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False
) -> None:
    """Show what is open: the same command again, or --transaction-id, takes it up."""
    with closing(CommandBook(sales or default_book())) as book:
        found = book.open()
    if as_json:
        print_json({"open": [{**{name: getattr(one, name) for name in Open.__slots__}} for one in found]})
        return
    for one in found:
        console.print(f"{one.transaction_id}  {one.command}, open since {one.at}", highlight=False, soft_wrap=True)
        console.print(f"  {_what(one)}; as {one.caller}", highlight=False, soft_wrap=True)
    if found:
        console.print("The same command, or --transaction-id, takes one up; no money back before.", soft_wrap=True)
    else:
        console.print("Nothing is open.")


@app.command("close", for_good="closes {transaction_id}: it is not taken up any more")
def close_open(
    transaction_id: Annotated[str, typer.Argument(help="Its id.")],
    because: Annotated[str, typer.Option(help="What the operator found out, for whoever reads the book.")],
    sales: SALES = None,
) -> None:
    """Close what the operator has settled: it is not taken up any more, and the same command makes a new id."""
    with closing(CommandBook(sales or default_book())) as book:
        if book.find(transaction_id) is None:
            fail(f"{transaction_id}: not open in this book; see utrn sales list", code=EXIT_USAGE)
        book.end(transaction_id, because)
    console.print("closed", highlight=False)


def _open_of(asked: Asked, tls: Files) -> Open:
    from core.gateways.system_clock import SystemClock

    cert, _, ca = tls
    at = SystemClock().now().isoformat(timespec="seconds")
    whom = {"caller": _caller(cert), "cluster": _cluster(ca)}
    return Open(transaction_id="", command=asked.command, content=asked.content, at=at, **whom)


def _what(one: Open) -> str:
    from utrn.v1 import types_pb2
    from utrn_client.amounts import pounds_text

    def said(name: str, value: str | int) -> str:
        if name == "amount_pence" and isinstance(value, int):
            return f"{pounds_text(value)} pounds"
        if name == "channel" and value in types_pb2.Channel.values():
            return types_pb2.Channel.Name(types_pb2.Channel.ValueType(value)).removeprefix("CHANNEL_").lower()
        return f"{name} {value}"

    return ", ".join(said(name, value) for name, value in one.content.items())


def _with_id(one: Open, transaction_id: str) -> Open:
    from dataclasses import replace

    return replace(one, transaction_id=transaction_id)


def _is_same(one: Open, other: Open) -> bool:
    """Return whether two ask for the same; a caller is known by any of its names, to which a new one may come."""
    callers = one.caller == other.caller or not {*one.caller.split(", ")}.isdisjoint(other.caller.split(", "))
    return callers and one.command == other.command and dict(one.content) == dict(other.content)


def _caller(cert: Path) -> str:
    """Return who asks: the SAN URIs of the certificate, which stay when it is renewed."""
    from cryptography import x509

    certificate = x509.load_pem_x509_certificate(cert.read_bytes())
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ""
    return ", ".join(names.get_values_for_type(x509.UniformResourceIdentifier))


def _cluster(ca: Path) -> str:
    """Return which cluster is asked: an id of one means nothing to another. Its authority tells them apart."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    found = sorted(
        certificate.public_bytes(Encoding.DER) for certificate in x509.load_pem_x509_certificates(ca.read_bytes())
    )
    return hashlib.sha256(b"".join(found)).hexdigest()[:16]


def _texts(begin: Mapping[str, Any]) -> bool:
    names = ("transaction_id", "command", "caller", "cluster", "at")
    return all(isinstance(begin.get(name), str) for name in names)
