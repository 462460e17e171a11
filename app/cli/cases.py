"""`utrn vend cases` and `utrn vend settle`: codes of which nobody knows whether their meter credited them."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from app.cli.options import CA, CERT, JSON, KEY, TARGET
from app.cli.paging import Listing, print_listing
from app.cli.requests import (
    Most,
    Page,
    PageToken,
    call,
    enum_name,
    instant_text,
    message_json,
)
from app.terminal.output import console, print_json


def cases(
    target: TARGET, cert: CERT, key: KEY, ca: CA,
    supplier: Annotated[str, typer.Option(help="Whose; your own if left out.")] = "",
    page_token: PageToken = "",
    limit: Most = 0, page: Page = 1000, as_json: JSON = False,
) -> None:  # fmt: skip
    """Open cases of a supplier: no money may be given back for them until they are settled."""
    from utrn.v1 import top_up_service_pb2 as pb

    from core.domain.delivery import DeliveryReason

    def row(one: Any) -> tuple[object, ...]:
        return (
            one.meter_id, one.utrn_counter, one.participant_id, one.code.transaction_id,
            f"{one.code.amount_pence // 100}.{one.code.amount_pence % 100:02d}", instant_text(one.delivery.closed_at),
            enum_name(one.delivery.reason, DeliveryReason),
        )  # fmt: skip

    listing = Listing(
        request=pb.ListOpenCasesRequest(supplier_id=supplier, page_token=page_token), field="vends", title="Open cases",
        columns=("meter", "counter", "sold by", "transaction id", "pounds", "since", "why"), row=row,
        most=limit, page=page,
    )  # fmt: skip
    print_listing(listing, target, (cert, key, ca), as_json=as_json)


def settles(values: Mapping[str, Any]) -> str:
    """Return what `settle` does for good."""
    return f"settles {values['transaction_id']} as {'credited' if values['credited'] else 'not credited'}"


def settle(
    transaction_id: Annotated[str, typer.Argument(help="The vend's transaction id.")],
    credited: Annotated[bool, typer.Option("--credited/--not-credited", help="What the meter's log of credits says.")],
    target: TARGET, cert: CERT, key: KEY, ca: CA,
    participant: Annotated[str, typer.Option(help="Who made it, if not the caller.")] = "",
    as_json: JSON = False,
) -> None:  # fmt: skip
    """Settle an open case by what its supplier has read in the meter's log of credits."""
    from utrn.v1 import top_up_service_pb2 as pb

    from core.domain.delivery import DeliveryState

    request = pb.SettleDeliveryRequest(transaction_id=transaction_id, participant_id=participant, credited=credited)
    reply = call(request, target, (cert, key, ca))
    if as_json:
        print_json(message_json(reply))
    else:
        console.print(enum_name(reply.delivery.state, DeliveryState), highlight=False)
