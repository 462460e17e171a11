"""`utrn sandbox`: a head end and a fleet of meters to try the service on, and the audit that compares the two."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from app.cli.command import Commands
from app.cli.requests import (
    pence_option,
)
from app.terminal.output import EXIT_FAILED, console, fail, print_json, print_table

if TYPE_CHECKING:
    from utrn.sandbox.v1 import sandbox_pb2 as pb

    from sandbox.servers import Tls

_T = TypeVar("_T")

app = Commands(help="A head end and a fleet of meters, emulated.")

_Dir = Annotated[Path, typer.Option("--dir", help="Where its state lives.")]
_Listen = Annotated[str, typer.Option("--listen", help="host:port.")]
_Cert = Annotated[Path, typer.Option("--cert", help="PEM file of the certificate.")]
_Key = Annotated[Path, typer.Option("--key", help="PEM file of the private key.")]
_Ca = Annotated[Path, typer.Option("--ca", help="PEM file of the peers' authority.")]
_Target = Annotated[str, typer.Option("--target", help="host:port of the process to speak to.")]
_Json = Annotated[bool, typer.Option("--json", help="One JSON object.")]


@app.command("make-fleet")
def make_fleet(
    folder: _Dir,
    supplier: Annotated[list[str], typer.Option(help="ID:ORIGINATOR_EUI64:PUBLIC_POINT_HEX; may be repeated.")],
    meters: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many.")] = 200,
    seed: Annotated[int | None, typer.Option(help="Of ids and PANs.")] = None,
    gas_share: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of gas meters.")] = 0.4,
    head_end: Annotated[str, typer.Option(help="Head end that reaches them.")] = "sandbox",
    max_credit: Annotated[int, pence_option("Maximum Credit Threshold, pence.", 0, 2**53)] = 819_100,
    max_balance: Annotated[int, pence_option("Maximum Meter Balance Threshold, pence.", 0, 2**53)] = 10_000_000,
) -> None:
    """Make meters with keys of their own, and the registry lines that name them."""
    from sandbox import provision

    try:
        registry = provision.make_fleet(
            folder,
            [provision.parse_supplier(text) for text in supplier],
            meters=meters,
            seed=provision.new_seed() if seed is None else seed,
            gas_share=gas_share,
            head_end=head_end,
            max_credit_pence=max_credit,
            max_balance_pence=max_balance,
        )
    except (ValueError, FileExistsError) as error:
        fail(str(error))
    console.print(f"{meters} meters made; load {registry} with `utrn registry load`.", highlight=False)


@app.command("fleet")
def fleet(
    folder: _Dir,
    listen: _Listen,
    cert: _Cert,
    key: _Key,
    ca: _Ca,
    cache_size: Annotated[int, typer.Option(help="UTRN counter cache of each meter.")] = 100,
    mac_first: Annotated[bool, typer.Option(help="Meters check the MAC before the counter.")] = False,
) -> None:
    """Run the meters until SIGTERM."""
    from sandbox.meter import Rules
    from sandbox.servers import run_fleet

    run_fleet(folder, listen, _tls(cert, key, ca), Rules(cache_size=cache_size, mac_before_duplicate=mac_first))


@app.command("head-end")
def head_end(
    folder: _Dir,
    listen: _Listen,
    fleet_target: Annotated[str, typer.Option("--fleet", help="host:port of the fleet.")],
    cert: _Cert,
    key: _Key,
    ca: _Ca,
    knob: Annotated[list[str] | None, typer.Option(help="NAME=VALUE; may be repeated.")] = None,
    seed: Annotated[int, typer.Option(help="Of its misbehaviour.")] = 1,
) -> None:
    """Run the head end until SIGTERM."""
    from sandbox.servers import run_head_end

    run_head_end(folder, listen, fleet_target, _tls(cert, key, ca), _parse_knobs(knob or []), seed)


@app.command("keypad")
def keypad(meter_id: str, digits: str, target: _Target, cert: _Cert, key: _Key, ca: _Ca) -> None:
    """Enter a code at a meter's keypad, as its consumer would."""
    from utrn.sandbox.v1 import sandbox_pb2 as pb
    from utrn.sandbox.v1 import sandbox_pb2_grpc as rpc

    async def enter() -> pb.EnterAtKeypadResponse:
        async with _tls(cert, key, ca).channel(target) as channel:
            request = pb.EnterAtKeypadRequest(meter_id=meter_id, digits=digits)
            return await rpc.FleetServiceStub(channel).EnterAtKeypad(request, timeout=5.0)

    reply = _call(enter)
    console.print(reply.display, highlight=False)
    if not reply.credited:
        raise typer.Exit(EXIT_FAILED)


@app.command("meter")
def meter(meter_id: str, target: _Target, cert: _Cert, key: _Key, ca: _Ca, as_json: _Json = False) -> None:
    """Read a meter."""
    from utrn.sandbox.v1 import sandbox_pb2 as pb
    from utrn.sandbox.v1 import sandbox_pb2_grpc as rpc

    async def ask() -> pb.ReadMeterResponse:
        async with _tls(cert, key, ca).channel(target) as channel:
            return await rpc.FleetServiceStub(channel).ReadMeter(pb.ReadMeterRequest(meter_id=meter_id), timeout=5.0)

    reply = _call(ask)
    facts = {
        "meter_id": reply.meter_id,
        "kind": "GSME" if reply.gas else "ESME",
        "balance_pence": reply.balance_pence,
        "credits": reply.credits,
        "highest_counter": reply.highest_counter,
    }
    if as_json:
        print_json(facts)
    else:
        print_table("Meter", tuple(facts), [tuple(facts.values())])


@app.command("knobs")
def knobs(
    target: _Target,
    cert: _Cert,
    key: _Key,
    ca: _Ca,
    knob: Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE; may be repeated.")] = None,
    as_json: _Json = False,
) -> None:
    """Set the head end's knobs, and show them with what they have done."""
    from google.protobuf.json_format import MessageToDict
    from utrn.sandbox.v1 import sandbox_pb2 as pb
    from utrn.sandbox.v1 import sandbox_pb2_grpc as rpc

    wanted = _parse_knobs(knob or [])

    async def turn() -> pb.GetKnobsResponse:
        async with _tls(cert, key, ca).channel(target) as channel:
            stub = rpc.HeadEndControlServiceStub(channel)
            await stub.SetKnobs(pb.SetKnobsRequest(knobs=wanted), timeout=5.0)
            return await stub.GetKnobs(pb.GetKnobsRequest(), timeout=5.0)

    reply = _call(turn)
    values = MessageToDict(reply.knobs, preserving_proto_field_name=True)
    if as_json:
        print_json({"knobs": values, "counts": dict(reply.counts)})
    else:
        print_table("Knobs", ("knob", "value"), list(values.items()))
        print_table("Counts", ("what", "how often"), sorted(reply.counts.items()))


@app.command("audit")
def audit(
    config: Annotated[Path, typer.Option("--config", "-c", help="A node's TOML file: says where etcd is.")],
    target: _Target,
    cert: _Cert,
    key: _Key,
    ca: _Ca,
    as_json: _Json = False,
) -> None:
    """Compare, meter by meter and to the penny, what was credited with what the ledger says."""
    from app.node.config import BadConfig, load_config
    from app.verification.money import audit_all

    try:
        settings = load_config(config)
    except BadConfig as error:
        fail(str(error))
    result = _call(lambda: audit_all(settings.etcd, target, _tls(cert, key, ca).channel))
    if as_json:
        print_json(result.as_json())
    else:
        print_table("Audit", ("what", "value"), list(result.as_json().items()))
        for finding in result.findings[:50]:
            console.print(finding, style="red", markup=False, highlight=False)
    if result.findings:
        raise typer.Exit(EXIT_FAILED)


def _tls(cert: Path, key: Path, ca: Path) -> "Tls":
    from sandbox.servers import Tls

    return Tls(cert=cert, key=key, ca=ca)


def _parse_knobs(settings: list[str]) -> "pb.Knobs":
    """Return knobs of NAME=VALUE texts."""
    from google.protobuf import text_format
    from utrn.sandbox.v1 import sandbox_pb2 as pb

    try:
        return text_format.Parse("\n".join(setting.replace("=", ": ", 1) for setting in settings), pb.Knobs())
    except text_format.ParseError as error:
        known = ", ".join(field.name for field in pb.Knobs.DESCRIPTOR.fields)
        fail(f"--knob/--set: {error}; NAME=VALUE is needed, with one of {known}")


def _call(ask: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    """Return what `ask` returns, or end with why there is no answer."""
    import grpc

    try:
        return asyncio.run(ask())
    except grpc.aio.AioRpcError as error:
        fail(f"{error.code().name}: {error.details()}")
