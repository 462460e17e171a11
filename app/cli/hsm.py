"""`utrn hsm`: the token, and the suppliers' prepayment keys in it. PINs come from files, never from here."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.command import Commands
from app.terminal.output import console, fail, print_json, print_table

if TYPE_CHECKING:
    from hsm.ceremony import KeyEntry
    from hsm.config import HsmConfig

app = Commands(help="The HSM token and the suppliers' keys.")

_Token = Annotated[str, typer.Option("--token", help="Label of the token.")]
_PinFile = Annotated[Path, typer.Option("--pin-file", help="File with the user PIN.")]
_Module = Annotated[Path | None, typer.Option("--module", help="PKCS#11 library; SoftHSM's if not given.")]
_Conf = Annotated[Path | None, typer.Option("--softhsm-conf", help="SoftHSM's configuration file.")]
_Audit = Annotated[Path | None, typer.Option("--audit", help="File to which the ceremony's audit line is appended.")]
_Json = Annotated[bool, typer.Option("--json", help="One JSON object.")]
_KeyId = Annotated[str, typer.Option("--key-id", help="CKA_ID in hex; by custom the originator's EUI-64.")]
_Label = Annotated[str, typer.Option("--label", help="For people.")]


@app.command("init")
def init(
    pin_file: _PinFile,
    so_pin_file: Annotated[Path, typer.Option("--so-pin-file", help="File with the security officer's PIN.")],
    token: _Token = "utrn",  # noqa: S107  # a label
    new_pins: Annotated[
        bool, typer.Option("--new-pins", help="Make the PIN files, with random PINs, if absent.")
    ] = False,
    module: _Module = None,
    softhsm_conf: _Conf = None,
    audit: _Audit = None,
) -> None:
    """Make the token."""
    from core.gateways.system_clock import SystemClock
    from hsm import ceremony

    config = _config(token, pin_file, module, softhsm_conf)
    with _refusals():
        if new_pins:
            ceremony.new_pin_file(pin_file)
            ceremony.new_pin_file(so_pin_file)
        ceremony.init_token(config, so_pin_file, now=SystemClock().now(), audit=audit)
    console.print(f"Token {token!r} made. Keep {so_pin_file} apart from {pin_file}.", highlight=False)


@app.command("import-key")
def import_key(
    pem: Annotated[Path, typer.Argument(help="P-256 private key in PEM.")],
    key_id: _KeyId,
    label: _Label,
    pin_file: _PinFile,
    token: _Token = "utrn",  # noqa: S107  # a label
    module: _Module = None,
    softhsm_conf: _Conf = None,
    audit: _Audit = None,
    as_json: _Json = False,
) -> None:
    """Store a supplier's prepayment key in the HSM, never to come out again."""
    from core.gateways.system_clock import SystemClock
    from hsm import ceremony

    config = _config(token, pin_file, module, softhsm_conf)
    with _refusals():
        entry = ceremony.import_key(config, pem, key_id=key_id, label=label, now=SystemClock().now(), audit=audit)
    _show([entry], as_json=as_json)


@app.command("generate-key")
def generate_key(
    key_id: _KeyId,
    label: _Label,
    pin_file: _PinFile,
    token: _Token = "utrn",  # noqa: S107  # a label
    module: _Module = None,
    softhsm_conf: _Conf = None,
    audit: _Audit = None,
    as_json: _Json = False,
) -> None:
    """Have the HSM make a supplier's prepayment key."""
    from core.gateways.system_clock import SystemClock
    from hsm import ceremony

    config = _config(token, pin_file, module, softhsm_conf)
    with _refusals():
        entry = ceremony.generate_key(config, key_id=key_id, label=label, now=SystemClock().now(), audit=audit)
    _show([entry], as_json=as_json)


@app.command("list")
def list_keys(
    pin_file: _PinFile,
    token: _Token = "utrn",  # noqa: S107  # a label
    module: _Module = None,
    softhsm_conf: _Conf = None,
    as_json: _Json = False,
) -> None:
    """List the keys: names and public halves only."""
    from hsm import ceremony

    config = _config(token, pin_file, module, softhsm_conf)
    with _refusals():
        entries = ceremony.list_keys(config)
    _show(entries, as_json=as_json)


def _config(token: str, pin_file: Path, module: Path | None, softhsm_conf: Path | None) -> "HsmConfig":
    from hsm.config import HsmConfig, find_softhsm

    try:
        return HsmConfig(
            module=module or find_softhsm(), token_label=token, pin_file=pin_file, softhsm_conf=softhsm_conf
        )
    except (ValueError, FileNotFoundError) as error:
        fail(str(error))


@contextmanager
def _refusals() -> Iterator[None]:
    from hsm.ceremony import CeremonyRefused

    try:
        yield
    except (CeremonyRefused, OSError, ValueError) as error:
        fail(str(error))


def _show(entries: "list[KeyEntry]", *, as_json: bool) -> None:
    from hsm.ceremony import as_json as plain

    if as_json:
        print_json({"keys": [plain(entry) for entry in entries]})
        return
    rows = [
        (one.label, one.key_id, one.public_point[:18] + "...", one.sensitive, one.extractable, one.never_left)
        for one in entries
    ]
    print_table("Keys", ("label", "key id", "public point", "sensitive", "extractable", "made inside"), rows)
