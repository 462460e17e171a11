"""Lists of any length: page after page, as a table or as one JSON object; long ones say how far they are."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from app.cli.requests import (
    TIMEOUT_S,
    Files,
    ask,
    message_json,
    stub_of,
)
from app.terminal.output import console, errors, print_table

if TYPE_CHECKING:
    import grpc
    from google.protobuf.message import Message

_PAGES_A_LINE = 10


def _next_after(reply: Any) -> str:
    return str(reply.next_after)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """A list, and how it is shown.

    Attributes:
        service: A service of utrn.v1.
        method: Its method.
        request: The first page; `after`, and `limit` where there is one, are set for each page.
        field: The field of the answer that has the items.
        title: Of the table.
        columns: Of the table.
        row: One item as a row.
        most: How many items at most; 0 for all. Only where the request has a `limit`.
        page: How many items in one call. Only where the request has a `limit`.
        next_after: Where the next page begins, from an answer; "" at the end.
        key: By which an item is gone on after, where a page may have more of them than were asked for.
    """

    service: str
    method: str
    request: "Message"
    field: str
    title: str
    columns: Sequence[str]
    row: Callable[[Any], Sequence[object]]
    most: int = 0
    page: int = 1000
    next_after: Callable[[Any], str] = _next_after
    key: Callable[[Any], str] | None = None


class JsonText:
    """Writes a list as one JSON object, item by item: a million items need no more memory than one page."""

    def __init__(self, field: str) -> None:
        self._next = f'{{"{field}": ['

    def add(self, items: Sequence["Message"]) -> None:
        """Write items."""
        for one in items:
            typer.echo(self._next + json.dumps(message_json(one)), nl=False)
            self._next = ", "

    def end(self, rest: Mapping[str, Any]) -> None:
        """Write what the answer has beside the items."""
        begun = "" if self._next == ", " else self._next
        typer.echo(f"{begun}]{', ' if rest else ''}{json.dumps(rest)[1:]}")


def print_listing(listing: Listing, target: str, tls: Files, *, as_json: bool) -> Any:
    """Print a list to its end, and return its last answer without the items."""
    rows: list[Sequence[object]] = []
    text = JsonText(listing.field)

    def heard(items: Sequence[Any]) -> None:
        if as_json:
            text.add(items)
        else:
            rows.extend(listing.row(one) for one in items)

    last = ask(lambda channel: _pages(channel, listing, heard), target, tls)
    if as_json:
        text.end({name: value for name, value in message_json(last).items() if name != listing.field})
        return last
    print_table(listing.title, listing.columns, rows)
    if listing.most and listing.next_after(last):
        console.print(f"more: --after {listing.next_after(last)}", highlight=False)
    return last


async def _pages(channel: "grpc.aio.Channel", listing: Listing, heard: Callable[[Sequence[Any]], None]) -> Any:
    """Hear every page, and return the last one without its items."""
    call = getattr(stub_of(listing.service, channel), listing.method)
    request: Any = type(listing.request)()
    request.CopyFrom(listing.request)
    limited, shown, pages = "limit" in request.DESCRIPTOR.fields_by_name, 0, 0
    while True:
        if limited:
            request.limit = min(listing.page, listing.most - shown) if listing.most else listing.page
        reply = await call(request, timeout=TIMEOUT_S)
        items = getattr(reply, listing.field)
        if listing.key is not None and listing.most and len(items) > listing.most - shown:
            del items[listing.most - shown :]
            reply.next_after = listing.key(items[-1])
        heard(items)
        shown, pages, after = shown + len(items), pages + 1, listing.next_after(reply)
        if not after or (listing.most and shown >= listing.most):
            reply.ClearField(listing.field)
            return reply
        request.after = after
        if pages == 1 or pages % _PAGES_A_LINE == 0:
            errors.print(f"{shown} {listing.field} so far, up to {after}", highlight=False, soft_wrap=True)
