"""The form of an audit file: one JSON object a line, in blocks, each chained by its seal to the one before.

    {"format": 2, "file": ..., "node": ..., "at": ...}                   the header, once
    {"at": ..., "act": "TOP_UP", "caller": ..., ...}                     lines of a block: decisions, and sales
    {"block": 0, "prev": ..., "lines": 1, "lost": 0, "at": ..., "sha256": ...}     its seal

A seal's hash covers the hash before it, the lines, and the seal itself up to the hash: nothing of a file is outside.
The first `prev` is the hash of the header. The last seal of a node that ended in good order has `"end": true`, and
nothing follows it. Format 1 had no header and no end, and its hash covered the lines only.
"""

import base64
import hashlib
import hmac
from datetime import datetime
from functools import lru_cache
from json import JSONEncoder

from core.domain.mask import masked
from core.domain.record import Kind, Ref
from core.domain.vend import Vend
from core.ports.audit_log import AuditRecord

FORMAT = 2
SOLD = "SOLD"
_OUTCOME_UNKNOWN = "unknown"
_HASH_FIELD = ',"sha256":"'
_HASH_LENGTH = 64
# The end of a seal, which its hash does not cover: the field, the hash, and `"}\n`.
HASH_AT = -(len(_HASH_FIELD) + _HASH_LENGTH + 3)
_UTRN_HASH_BYTES = 16

_encode = JSONEncoder(separators=(",", ":"), check_circular=False).encode


def header_line(file: str, node_id: str, at: datetime) -> bytes:
    """Return the first line of a file."""
    return (_encode({"format": FORMAT, "file": file, "node": node_id, "at": at.isoformat()}) + "\n").encode()


def decision_line(audit_record: AuditRecord) -> str:
    """Return the line of a decision; what is a stranger's text is masked."""
    line: dict[str, object] = {
        "at": audit_record.at.isoformat(),
        "clock": audit_record.clock,
        "caller": audit_record.caller,
        "identity": masked(audit_record.identity),
        "act": audit_record.act,
        "ask": masked(audit_record.ask),
        "subject": masked(audit_record.subject),
        "pence": audit_record.amount,
        "outcome": audit_record.outcome,
        "rule": masked(audit_record.rule),
        "basis": [_basis_entry(entry) for entry in audit_record.read_set],
    }
    for name in ("channel", "rows", "digits", "peer"):
        value = getattr(audit_record, name)
        if value:
            line[name] = value
    return _encode(line) + "\n"


def sale_line(vend: Vend, revision: int, key: bytes) -> str:
    """Return the line of a sale, as it was committed at `revision`; 0 if nobody knows whether it was."""
    sale = vend.sale
    line = {
        "at": vend.issued_at.isoformat(),
        "act": SOLD,
        "caller": sale.participant_id,
        "ask": sale.transaction_id,
        "subject": vend.meter_id,
        "pence": sale.amount,
        "channel": int(sale.channel),
        "operation": sale.operation.name,
        "supplier": vend.supplier_id,
        "originator": vend.originator_id,
        "counter": vend.counter,
        "utrn": utrn_hash(key, vend.utrn),
        "outcome": "sold" if revision else _OUTCOME_UNKNOWN,
        "revision": revision,
    }
    return _encode(line) + "\n"


def utrn_hash(key: bytes, utrn: str) -> str:
    """Return what an audit file has of the digits of a code.

    Keyed: of a sale whose amount and counter are known, only 32 bits of a code are not, and each could be tried. In
    base64, in which no run of digits looks like a card's number.
    """
    return base64.urlsafe_b64encode(hmac.digest(key, utrn.encode(), "sha256")[:_UTRN_HASH_BYTES]).decode()


def sealed(body: bytes, *, block: int, prev: str, lines: int, lost: int, at: datetime, end: bool) -> tuple[bytes, str]:
    """Return the seal's line of a block, and the hash in it."""
    seal: dict[str, object] = {"block": block, "prev": prev, "lines": lines, "lost": lost, "at": at.isoformat()}
    if end:
        seal["end"] = True
    covered = _encode(seal)[:-1].encode()
    digest = hash_of(prev, body, covered)
    return covered + f'{_HASH_FIELD}{digest}"}}\n'.encode(), digest


def hash_of(prev: str, body: bytes, covered: bytes) -> str:
    """Return the hash of a block: over the one before, its lines, and its seal up to the hash."""
    return hashlib.sha256(prev.encode() + body + covered).hexdigest()


def _basis_entry(entry: tuple[Ref, int]) -> list[object]:
    """Return one record of a basis. A PAN is the consumer's: its last four digits tell it apart."""
    (kind, record_id), revision = entry
    if kind is Kind.METER:
        return ["meter", record_id, revision]
    if kind is Kind.PAN:
        return ["pan", f"..{record_id[-4:]}", revision]
    return [kind.value, _shared_id(record_id), revision]


@lru_cache(maxsize=10_000)
def _shared_id(record_id: str) -> str:
    """Return the id of a record that is the same in line after line: the supplier's, the appointment's, the model's."""
    return masked(record_id)
