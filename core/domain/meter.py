"""Meter, MeterId and Pan: what a PAN stands for, and what a meter is."""

import re
from dataclasses import dataclass
from enum import IntEnum
from typing import NewType

from core.domain.effective_dated import NEVER, EffectiveDated, Ms
from core.domain.errors import BadField
from core.domain.participant import ParticipantId

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


class Generation(IntEnum):
    """Which technical specification the meter follows. Stored by number."""

    SMETS1 = 1
    SMETS2 = 2


class PaymentMode(IntEnum):
    """PaymentMode says how the consumer pays. Stored by number."""

    PREPAYMENT = 1
    CREDIT = 2


class Custody(IntEnum):
    """Who spends the counters of (originator, meter): exactly one at any instant. Stored by number."""

    CENTRAL = 1
    SUPPLIER = 2
    SMSO = 3


class PanForm(IntEnum):
    """PanForm says what carries a PAN. Stored by number."""

    PLASTIC = 1
    VIRTUAL = 2
    APP = 3


class PanStatus(IntEnum):
    """PanStatus says whether a PAN may be quoted. Stored by number."""

    ACTIVE = 1
    BLOCKED = 2
    REPLACED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """Whose meter it is, and who spends its counters."""

    supplier_id: ParticipantId
    custody: Custody = Custody.CENTRAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings are what can change of a meter while the meter stays the same.

    `tenancy` counts the tenants: a PAN of an earlier one is not taken any more. Thresholds are in pence, 0 for unknown.
    """

    payment_mode: PaymentMode = PaymentMode.PREPAYMENT
    enrolled: bool = True
    head_end: str
    zone: str = ""
    firmware: str = ""
    cohort: str = ""
    max_credit_pence: int = 0
    max_balance_pence: int = 0
    tenancy: int = 1


# Values like all others, and never changed. Not frozen, because every request makes a Meter, a PanRecord and a
# PanAssignment from their stored form, and a frozen one takes four times as long to make.
@dataclass(slots=True, kw_only=True)
class Meter:
    """A registered meter and its history. `public_point` is its P-256 key-agreement key, 65 bytes uncompressed.

    `effective_through` is up to which instant its changes have been carried out in the ledger: whatever is committed
    for the meter after that is judged as of that instant or later, however slow a node's clock is.
    `balance_outstanding_pence` are the codes of the sequence of `balance_originator_id` that were sold and not known at
    the meter when the balance was read.
    """

    meter_id: MeterId
    kind: MeterKind
    generation: Generation = Generation.SMETS2
    make: str = ""
    model: str = ""
    scheme: str
    public_point: bytes
    registrations: EffectiveDated[Registration]
    settings: EffectiveDated[Settings]
    effective_through: Ms = NEVER
    balance_pence: int = 0
    balance_at: Ms = NEVER
    balance_outstanding_pence: int = 0
    balance_originator_id: OriginatorId | None = None

    def due(self, now: Ms) -> Ms | None:
        """Return the newest instant up to `now` at which something changed that has not been carried out yet."""
        registration, settings = self.registrations.periods[-1], self.settings.periods[-1]
        if (
            registration.until is None
            and settings.until is None
            and not (registration.since > self.effective_through or settings.since > self.effective_through)
        ):
            # Everything has been carried out, and nothing follows: so it is for nearly every meter.
            return None
        newest = NEVER
        for instant in self.instants():
            if newest < instant <= now:
                newest = instant
        return newest if newest > self.effective_through else None

    def stands_at(self, now: Ms, since: Ms | None) -> tuple[Registration, Settings] | None:
        """Return whose the meter is and how it is set at `since`; None: now, never before what was carried out.

        None if nobody supplies it then.
        """
        at = max(now, self.effective_through) if since is None else since
        registration, settings = self.registrations.at(at), self.settings.at(at)
        return None if registration is None or settings is None else (registration.value, settings.value)

    def head_end_at(self, now: Ms) -> str | None:
        """Return the head end that the meter is registered to now; the last one, if the meter is out of service.

        What a meter has credited may be heard after it was taken out of service. None if it has never been in service.
        """
        settings = self.settings.begun_by(max(now, self.effective_through))
        return None if settings is None else settings.value.head_end

    def instants(self) -> list[Ms]:
        """Return every instant at which something begins or ends."""
        found: list[Ms] = []
        for period in self.registrations.periods:
            found.append(period.since)
            if period.until is not None:
                found.append(period.until)
        for other in self.settings.periods:
            found.append(other.since)
            if other.until is not None:
                found.append(other.until)
        return found


@dataclass(slots=True, kw_only=True)
class PanAssignment:
    """A PAN assignment names the meter and the tenancy that a PAN stands for, and the supplier that gave the PAN."""

    meter_id: MeterId
    supplier_id: ParticipantId
    tenancy: int = 1
    status: PanStatus = PanStatus.ACTIVE


@dataclass(slots=True, kw_only=True)
class PanRecord:
    """A registered PAN (plastic, virtual or in an app) and its history: at any instant, one meter."""

    pan: Pan
    form: PanForm = PanForm.PLASTIC
    uses: EffectiveDated[PanAssignment]
    replaced_by: Pan | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterCapabilities:
    """What meters can do. `schemes`: the token schemes that meters take, `over_the_air`: whether a code can be sent.

    `central_issue` says whether codes for them can be made here.
    """

    schemes: frozenset[str]
    over_the_air: bool = True
    central_issue: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The meters of one make and model: a row of the capability matrix, and its history."""

    make: str
    model: str
    abilities: EffectiveDated[MeterCapabilities]


@dataclass(frozen=True, slots=True, kw_only=True)
class PanRule:
    """PanRule says how a PAN looks. Whether energy PANs always pass Luhn is unconfirmed: the rule is configuration."""

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
