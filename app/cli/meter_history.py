"""`utrn meter sellers` and `utrn meter changes`: who could sell to a meter when, and what changed hands."""

from typing import Annotated

import typer

from app.cli.options import CA, CERT, JSON, KEY, TARGET
from app.cli.paging import Listing, print_listing
from app.cli.requests import (
    Instant,
    Most,
    Page,
    PageToken,
    call,
    enum_name,
    instant_text,
    message_json,
    moment,
)
from app.terminal.output import EXIT_USAGE, console, fail, print_json, print_table


def sellers(
    target: TARGET, cert: CERT, key: KEY, ca: CA,
    meter: Annotated[str, typer.Option(help="EUI-64.")] = "",
    pan: Annotated[str, typer.Option(help="Or a PAN.")] = "",
    at: Instant = "", as_json: JSON = False,
) -> None:  # fmt: skip
    """Who could sell to a meter at an instant, as the registry stood then."""
    from utrn.v1 import meter_service_pb2 as pb

    if bool(meter) == bool(pan):
        fail("--meter or --pan: one of the two is needed", code=EXIT_USAGE)
    request = pb.ListSellersRequest(meter_id=meter, pan=pan, at=moment(at))
    reply = call(request, target, (cert, key, ca))
    if as_json:
        print_json(message_json(reply))
        return
    console.print(f"meter {reply.meter_id or '-'}, supplier {reply.supplier_id or '-'}", highlight=False)
    rows = [
        (seller.participant_id, seller.may_issue, seller.may_deliver, seller.allowed_by) for seller in reply.sellers
    ]
    print_table("Who could sell", ("participant", "issue", "deliver", "allowed by"), rows)


def changes(
    target: TARGET, cert: CERT, key: KEY, ca: CA,
    supplier: Annotated[str, typer.Option(help="Whose; your own if left out.")] = "",
    since: Annotated[str, typer.Option(help="Only at or after this instant, as 2026-11-24T12:00:00Z.")] = "",
    page_token: PageToken = "",
    limit: Most = 0, page: Page = 1000, as_json: JSON = False,
) -> None:  # fmt: skip
    """Changes of hands that were carried out; --json names what was owed, and codes not known to be credited."""
    from utrn.v1 import meter_service_pb2 as pb

    from core.domain.registration_change import ChangeKind

    def row(change: pb.RegistrationChange) -> tuple[object, ...]:
        kinds = ", ".join(enum_name(kind, ChangeKind) for kind in change.kinds)
        return (
            change.meter_id, instant_text(change.at), instant_text(change.carried_out_at), kinds,
            change.responsible_supplier_id, change.supplier_id_after or "-",
            len(change.uncredited) + change.uncredited_more, len(change.in_flight),
        )  # fmt: skip

    listing = Listing(
        request=pb.ListRegistrationChangesRequest(supplier_id=supplier, since=moment(since), page_token=page_token),
        field="changes",
        title="Changes of hands",
        columns=("meter", "at", "carried out", "what", "responsible", "supplier after", "uncredited", "in flight"),
        row=row, most=limit, page=page,
    )  # fmt: skip
    print_listing(listing, target, (cert, key, ca), as_json=as_json)
