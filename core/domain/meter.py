"""Meter, MeterId and Pan: what a PAN stands for, and what a meter is."""

import re
from dataclasses import dataclass
from enum import IntEnum
from typing import NewType

from core.domain.errors import BadField
from core.domain.party import ParticipantId

MeterId = NewType("MeterId", str)
OriginatorId = NewType("OriginatorId", str)
Pan = NewType("Pan", str)

_EUI64 = re.compile(r"[0-9a-f]{16}", re.ASCII)
_PAN = re.compile(r"[0-9]+", re.ASCII)
# Twice the digit, its own digits added.
_DOUBLED = {str(digit): sum(divmod(2 * digit, 10)) for digit in range(10)}


class MeterKind(IntEnum):
    """Fuel of the meter, by GBCS device type. Stored by number."""

    ESME = 1
    GSME = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Meter:
    """A registered meter. `public_point` is its P-256 key-agreement key, 65 bytes uncompressed."""

    meter_id: MeterId
    kind: MeterKind
    supplier_id: ParticipantId
    scheme: str
    public_point: bytes
    head_end: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A registered PAN (plastic or virtual) and the one meter it stands for."""

    pan: Pan
    meter_id: MeterId
    blocked: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PanRule:
    """What a PAN looks like. Whether energy PANs always pass Luhn is unconfirmed, so it is configuration."""

    digits: int = 19
    luhn: bool = True
    issuer_prefixes: tuple[str, ...] = ()


def parse_eui64(text: str, *, field: str) -> str:
    """Return `text` if it is an EUI-64 in 16 lower-case hex digits; raise BadField if not."""
    if not _EUI64.fullmatch(text):
        raise BadField(f"{field}: an EUI-64 in 16 lower-case hex digits is needed", field=field)
    return text


def parse_pan(text: str, rule: PanRule, *, field: str = "pan") -> Pan:
    """Return `text` as a PAN that follows `rule`.

    Raises:
        BadField: says which part of the rule fails, without quoting the number.

    Source: ISO/IEC 7812-1 (length, issuer prefix, Luhn check digit).
    """
    if len(text) != rule.digits or not _PAN.fullmatch(text):
        raise BadField(f"{field}: {rule.digits} decimal digits without spaces are needed", field=field)
    if rule.issuer_prefixes and not text.startswith(rule.issuer_prefixes):
        raise BadField(f"{field}: not the number of an energy card (unknown issuer prefix)", field=field)
    if rule.luhn and luhn_digit(text[:-1]) != text[-1]:
        raise BadField(f"{field}: the check digit is wrong; a digit was mistyped", field=field)
    return Pan(text)


def luhn_digit(digits: str) -> str:
    """Return the Luhn check digit of `digits`, as one character. Source: ISO/IEC 7812-1 annex B."""
    doubled, single = digits[::-2], digits[-2::-2]
    return str(-(sum(map(_DOUBLED.__getitem__, doubled)) + sum(map(int, single))) % 10)
