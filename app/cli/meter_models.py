"""`utrn meter-model`: the capability matrix, what the meters of each make and model can do."""

from typing import Annotated

import typer

from app.cli.command import Commands
from app.cli.options import CA, CERT, JSON, KEY, TARGET
from app.cli.requests import (
    Instant,
    call,
    message_json,
    moment,
    period_of,
    print_result,
)
from app.terminal.output import print_json, print_table

app = Commands(help="The capability matrix: what the meters of a make and model can do.")


@app.command("set")
def set_model(
    make: Annotated[str, typer.Argument(help="Manufacturer.")],
    name: Annotated[str, typer.Argument(help="Model.")],
    target: TARGET, cert: CERT, key: KEY, ca: CA,
    scheme: Annotated[list[str], typer.Option(help="Token scheme its meters take; repeat it.")] = ["gbcs"],  # noqa: B006  # typer's way
    over_the_air: Annotated[bool, typer.Option(help="Whether codes can be sent to them.")] = True,
    central_issue: Annotated[bool, typer.Option(help="Whether codes for them can be made here.")] = True,
    since: Instant = "", as_json: JSON = False,
) -> None:  # fmt: skip
    """Say what the meters of a model can do."""
    from utrn.v1 import meter_model_service_pb2 as pb

    row = pb.MeterModel(make=make, model=name, schemes=scheme, over_the_air=over_the_air, central_issue=central_issue)
    request = pb.SetMeterModelRequest(model=row, since=moment(since))
    print_result(call(request, target, (cert, key, ca)).result, as_json=as_json)


@app.command("list")
def list_models(target: TARGET, cert: CERT, key: KEY, ca: CA, as_json: JSON = False) -> None:
    """The capability matrix, with what was so before and what will be so."""
    from utrn.v1 import meter_model_service_pb2 as pb

    reply = call(pb.ListMeterModelsRequest(), target, (cert, key, ca))
    if as_json:
        print_json(message_json(reply))
        return
    rows = [
        (
            model.make,
            model.model,
            *period_of(can.period),
            " ".join(can.schemes) or "-",
            can.over_the_air,
            can.central_issue,
        )
        for model in reply.models
        for can in model.history
    ]
    columns = ("make", "model", "since", "until", "by", "schemes", "over the air", "central issue")
    print_table("What meters can do", columns, rows)
