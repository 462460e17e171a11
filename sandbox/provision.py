"""Makes a fleet: meters with keys of their own, PANs that stand for them, and the registry lines that say so."""

import json
import random
import secrets
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sandbox.fleet import SCHEMA
from sandbox.store import Store

# A made-up range: which issuer numbers real energy cards have is unconfirmed.
_PAN_PREFIX = "9826"
_METER_PREFIX = "00db12"


@dataclass(frozen=True, slots=True)
class Supplier:
    """Whose meters are made. `point` is the prepayment public point, 65 bytes."""

    supplier_id: str
    originator_id: str
    point: bytes


def parse_supplier(text: str) -> Supplier:
    """Return the supplier of "id:originator EUI-64:public point in hex".

    Raises:
        ValueError: says what is wrong.
    """
    try:
        supplier_id, originator_id, point = text.split(":")
        ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), bytes.fromhex(point))
    except ValueError as error:
        raise ValueError("a supplier is given as ID:ORIGINATOR_EUI64:PUBLIC_POINT_HEX") from error
    return Supplier(supplier_id, originator_id, bytes.fromhex(point))


def make_fleet(
    folder: Path,
    suppliers: Sequence[Supplier],
    *,
    meters: int,
    seed: int,
    gas_share: float,
    head_end: str,
    max_credit_pence: int,
    max_balance_pence: int,
) -> Path:
    """Make `meters` meters in `folder`, and return the file with their registry lines.

    Ids and PANs come from `seed`; keys do not. Private keys stay in the fleet's own file.

    Raises:
        FileExistsError: there is a fleet already.
    """
    state = folder / "fleet.sqlite"
    if state.exists():
        raise FileExistsError(f"{state} exists; a fleet's meters keep their credits: choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(seed)  # noqa: S311  # names, not keys
    store = Store(state, SCHEMA)
    rows, lines = [], []
    for index in range(meters):
        supplier = suppliers[index % len(suppliers)]
        meter_id = f"{_METER_PREFIX}{chance.getrandbits(24):06x}{index:04x}"
        gas = chance.random() < gas_share
        key = ec.generate_private_key(ec.SECP256R1())
        point = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        originators = json.dumps({supplier.originator_id: supplier.point.hex()})
        rows.append(
            (
                "INSERT INTO meters VALUES (?, ?, ?, ?, ?, ?, 0)",
                (meter_id, gas, f"{key.private_numbers().private_value:064x}", originators,
                 max_credit_pence, max_balance_pence),
            )
        )  # fmt: skip
        lines.append(_meter_line(meter_id, gas, supplier.supplier_id, point, head_end))
        lines.append({"assign_pan": {"pan": _pan(chance), "meter_id": meter_id}})
    store.write_now(rows)
    store.close()
    registry = folder / "meters.jsonl"
    registry.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return registry


def new_seed() -> int:
    """Return a seed nobody chose."""
    return secrets.randbits(32)


def _meter_line(meter_id: str, gas: bool, supplier_id: str, point: bytes, head_end: str) -> dict[str, object]:
    meter = {
        "meter_id": meter_id,
        "kind": "METER_KIND_GSME" if gas else "METER_KIND_ESME",
        "scheme": "gbcs",
        "public_point": b64encode(point).decode(),
    }
    return {"add_meter": {"meter": meter, "supplier_id": supplier_id, "settings": {"head_end": head_end}}}


def _pan(chance: random.Random) -> str:
    digits = _PAN_PREFIX + f"{chance.randrange(10**14):014d}"
    total = sum(
        sum(divmod(2 * int(digit), 10)) if place % 2 == 0 else int(digit) for place, digit in enumerate(digits[::-1])
    )
    return digits + str(-total % 10)
