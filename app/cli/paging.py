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
    method_of,
)
from app.terminal.output import console, errors, print_table

if TYPE_CHECKING:
    import grpc
    from google.protobuf.message import Message

_PAGES_A_LINE = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """A list, and how it is shown.

    Attributes:
        request: The first page; `page_token` and `page_size` are set for each page.
        field: The field of the answer that has the items.
        title: Of the table.
        columns: Of the table.
        row: One item as a row.
        most: How many items at most; 0 for all.
        page: How many items in one call.
    """

    request: "Message"
    field: str
    title: str
    columns: Sequence[str]
    row: Callable[[Any], Sequence[object]]
    most: int = 0
    page: int = 1000


class JsonText:
    """Writes a list as one JSON object, item by item: a million items need no more memory than one page."""

    def __init__(self, field: str) -> None:
        self._next = f'{{"{field}": ['

    def add(self, items: Sequence["Message"]) -> None:
        """Write items."""
        for item in items:
            typer.echo(self._next + json.dumps(message_json(item)), nl=False)
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
            rows.extend(listing.row(item) for item in items)

    last = ask(lambda channel: _pages(channel, listing, heard), target, tls)
    if as_json:
        text.end({name: value for name, value in message_json(last).items() if name != listing.field})
        return last
    print_table(listing.title, listing.columns, rows)
    if listing.most and last.next_page_token:
        console.print(f"more: --page-token {last.next_page_token}", highlight=False)
    return last


async def _pages(channel: "grpc.aio.Channel", listing: Listing, heard: Callable[[Sequence[Any]], None]) -> Any:
    """Hear every page, and return the last one without its items."""
    request: Any = type(listing.request)()
    request.CopyFrom(listing.request)
    method = method_of(request, channel)
    shown = pages = 0
    while True:
        request.page_size = min(listing.page, listing.most - shown) if listing.most else listing.page
        reply = await method(request, timeout=TIMEOUT_S)
        items = getattr(reply, listing.field)
        heard(items)
        shown, pages = shown + len(items), pages + 1
        if not reply.next_page_token or (listing.most and shown >= listing.most):
            reply.ClearField(listing.field)
            return reply
        request.page_token = reply.next_page_token
        if pages == 1 or pages % _PAGES_A_LINE == 0:
            errors.print(f"{shown} {listing.field} so far", highlight=False, soft_wrap=True)
