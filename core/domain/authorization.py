"""authorize: may this caller do this for this PAN, at this instant? The one rule on every path; pure.

Objections come in the order in which a caller may learn of them: whoever may not act for a meter hears only that.
"""

from typing import NamedTuple, Protocol

from core.domain import errors
from core.domain.appointment import Terms
from core.domain.balance import NO_BALANCE, BalanceTold, told_room
from core.domain.effective_dated import NEVER, AsOf, Ms
from core.domain.errors import Refused
from core.domain.grant import GrantRecords, find_grant
from core.domain.meter import (
    Custody,
    Meter,
    MeterId,
    Model,
    OriginatorId,
    Pan,
    PanAssignment,
    PanRecord,
    PanStatus,
    PaymentMode,
)
from core.domain.participant import (
    Participant,
    ParticipantId,
    SellingModel,
    SupplierKey,
)
from core.domain.record import Kind, ReadSet, Ref, Versioned
from core.domain.vend import Authorization, Operation

# A named tuple made by its own name takes twice as long, and every sale makes several.
_new = tuple.__new__
BALANCE_TRUSTED_MS = 24 * 3600 * 1000


_MINTING = frozenset({Operation.ISSUE, Operation.TOP_UP, Operation.CREDIT})


class Records(GrantRecords, Protocol):
    """Where the records are looked up."""

    def card(self, pan: Pan, /) -> Versioned[PanRecord] | None:
        """A PAN."""
        ...

    def meter(self, meter_id: MeterId, /) -> Versioned[Meter] | None:
        """A meter."""
        ...

    def model(self, make: str, model: str, /) -> Versioned[Model] | None:
        """A model."""
        ...


class Question(NamedTuple):
    """Who asks for what. `amount` in pence, `channel` the number in utrn.v1; 0 where they do not matter."""

    caller: Participant
    operation: Operation
    pan: Pan
    amount: int
    channel: int


class Permit(NamedTuple):
    """A sale that is allowed: what a vend of it keeps, and what only its commit needs.

    It holds from `since` until `until`, and as long as no record of the authorization's read set has moved.
    """

    authorization: Authorization
    scheme: str
    public_point: bytes
    key: SupplierKey
    since: Ms
    until: Ms
    told: BalanceTold = NO_BALANCE


class AuthorizationDecision(NamedTuple):
    """The decision on one question. `due_change_of` names a meter whose due change must be carried out first."""

    permit: Permit | None
    refusals: list[Refused]
    read_set: ReadSet
    meter_id: MeterId | None = None
    supplier_id: ParticipantId | None = None
    due_change_of: MeterId | None = None


def authorize(
    records: Records, question: Question, now: Ms, *, collect_all: bool = False, head_ends: frozenset[str] | None = None
) -> AuthorizationDecision:
    """Return whether `question` may be done at `now`, by whom it was decided, and until when that holds.

    Args:
        records: The registry.
        question: Who asks for what.
        now: The instant.
        collect_all: Find every objection, not only the first: somebody asks, and does not sell.
        head_ends: The names of the head ends that there are; None if they are not known, or do not matter.
    """
    case = _Case(records, question, now, head_ends, collect_all)
    case.decide()
    read_set = tuple(case.read_set)
    permit = None if case.refusals or case.due_change_of is not None else case.permit(read_set)
    refusals = case.refusals if collect_all else case.refusals[:1]
    decision: AuthorizationDecision = _new(
        AuthorizationDecision, (permit, refusals, read_set, case.meter_id, case.supplier_id, case.due_change_of)
    )
    return decision


class _Case:
    """One question under way; notes every record it has looked at, and until when each holds."""

    __slots__ = (
        "_asked_only", "_at", "_card_use", "_head_ends", "_key", "_meter", "_profile", "_question", "_records",
        "_registration", "_rule", "_settings", "due_change_of", "meter_id", "read_set", "refusals", "supplier_id",
    )  # fmt: skip

    def __init__(
        self, records: Records, question: Question, now: Ms, head_ends: frozenset[str] | None, asked_only: bool
    ) -> None:
        self._asked_only = asked_only
        self._records = records
        self._head_ends = head_ends
        self._question = question
        self._at = AsOf(now)
        self.read_set: list[tuple[Ref, int]] = []
        self.refusals: list[Refused] = []
        self.due_change_of: MeterId | None = None
        self.meter_id: MeterId | None = None
        self.supplier_id: ParticipantId | None = None
        self._rule = ""

    def permit(self, read_set: ReadSet) -> Permit:
        meter, settings, key = self._meter, self._settings, self._key
        # In the order of the fields.
        kept: Authorization = _new(
            Authorization,
            (
                meter.meter_id,
                meter.kind,
                settings.head_end,
                self._registration.supplier_id,
                OriginatorId(key.originator_id),
                settings.tenancy,
                self._rule,
                read_set,
            ),
        )
        told = NO_BALANCE if meter.balance_at == NEVER else self._told()
        fields = (kept, meter.scheme, meter.public_point, key, meter.effective_through, self._at.until, told)
        permit: Permit = _new(Permit, fields)
        return permit

    def decide(self) -> None:
        """Find what stands against it, in order. Ends early where nothing further may be told, or can be known."""
        use = self._use()
        if isinstance(use, Refused):
            self._deny(use)
            return
        self._card_use = use
        unknown = self._look_at_meter(use.meter_id)
        if unknown is not None:
            self._deny(unknown)
            return
        if self.due_change_of is not None:
            return
        no_grant = self._without_grant()
        if no_grant is not None:
            self._deny(no_grant)
            return
        self._of_pan()
        self._of_meter()
        self._of_counters()
        if self._question.amount:
            self._of_amount()

    def _deny(self, refusal: Refused) -> None:
        self.refusals.append(refusal)

    def _use(self) -> PanAssignment | Refused:
        card = self._records.card(self._question.pan)
        if card is None:
            return errors.PanNotFound("pan is not registered; check the number with the consumer's supplier")
        self.read_set.append((_new(Ref, (Kind.PAN, self._question.pan)), card.revision))
        use = self._at.value(card.record.uses)
        if use is None:
            return errors.PanNotFound("pan stands for no meter at this time; check with the consumer's supplier")
        return use

    def _look_at_meter(self, meter_id: MeterId) -> Refused | None:
        known = self._records.meter(meter_id)
        if known is None:
            return errors.MeterNotFound("pan stands for a meter that is not registered; its supplier must register it")
        self.read_set.append((_new(Ref, (Kind.METER, meter_id)), known.revision))
        self._meter = meter = known.record
        self.meter_id = meter_id
        if meter.due(self._at.now) is not None:
            self.due_change_of = meter_id
            return None
        # What was carried out stays carried out, even where this node's clock is a little slow.
        self._at.now = max(self._at.now, meter.effective_through)
        registration, settings = self._at.value(meter.registrations), self._at.value(meter.settings)
        if registration is None or settings is None:
            return errors.MeterNotFound("nobody supplies this meter at this time; the supplier must register it")
        self._registration, self._settings = registration, settings
        self.supplier_id = registration.supplier_id
        return None

    def _without_grant(self) -> Refused | None:
        """Return why the caller may not act for the meter's supplier, or None."""
        grants, question = self._records.grants, self._question
        supplier_id = self._registration.supplier_id
        key = question.caller.participant_id, supplier_id, question.operation
        grant = grants.get(key)
        if grant is None or not grant.since <= self._at.now < grant.until:
            found = find_grant(self._records, question.caller, question.operation, supplier_id, self._at.now)
            if isinstance(found, Refused):
                return found
            grant = grants[key] = found
        self.read_set += grant.read_set
        self._at.hold_until(grant.until)
        self._key, self._profile, self._rule = grant.key, grant.profile, grant.rule
        return None if grant.terms is None else self._outside_terms(grant.terms)

    def _outside_terms(self, terms: Terms) -> Refused | None:
        question = self._question
        if question.channel and terms.channels and question.channel not in terms.channels:
            return errors.ChannelNotAllowed("the appointment does not cover this channel", channel=question.channel)
        if question.amount and not terms.min_pence <= question.amount <= terms.max_pence:
            return _out_of_limits(terms.min_pence, terms.max_pence, "appointment")
        return None

    def _of_pan(self) -> None:
        use = self._card_use
        # A code that was paid for is delivered, even if the card was lost since.
        if use.status is not PanStatus.ACTIVE and self._question.operation is not Operation.DELIVER:
            self._deny(errors.PanBlocked("the PAN is blocked"))
        if use.supplier_id != self._registration.supplier_id:
            self._deny(
                errors.PanNotCurrent("the card was given by an earlier supplier of the meter", because="supplier")
            )
        elif use.tenancy != self._settings.tenancy:
            self._deny(errors.PanNotCurrent("the card was given to an earlier tenant", because="tenancy"))

    def _of_meter(self) -> None:
        settings, meter, act = self._settings, self._meter, self._question.operation
        if not settings.enrolled:
            self._deny(errors.MeterNotEnrolled("the meter is not enrolled with this service; ask its SMSO"))
        if settings.payment_mode is not PaymentMode.PREPAYMENT:
            self._deny(errors.MeterInCreditMode("the meter is in credit mode; its supplier can change that"))
        if act is not Operation.ISSUE and self._head_ends is not None and settings.head_end not in self._head_ends:
            self._deny(
                errors.HeadEndUnknown(
                    "the meter's record names a head end that is not there; its supplier must correct it",
                    head_end=settings.head_end,
                    known=", ".join(sorted(self._head_ends)),
                )
            )
        if not meter.make:
            return
        model = self._records.model(meter.make, meter.model)
        can = None if model is None else self._at.value(model.record.abilities)
        if model is None or can is None:
            self._deny(
                errors.NotSupportedByMeter("the meter's model is not in the capability matrix", scheme=meter.scheme)
            )
            return
        self.read_set.append((Ref(Kind.MODEL, f"{meter.make}/{meter.model}"), model.revision))
        if meter.scheme not in can.schemes:
            self._deny(errors.NotSupportedByMeter("the model does not take codes of this scheme", scheme=meter.scheme))
        if act in _MINTING and not can.central_issue:
            self._deny(errors.NotSupportedByMeter("codes for this model cannot be made here", scheme=meter.scheme))
        if act is not Operation.ISSUE and not can.over_the_air:
            self._deny(errors.NotSupportedByMeter("this model cannot be sent codes over the air", scheme=meter.scheme))

    def _of_counters(self) -> None:
        custody = self._registration.custody
        if self._question.operation in _MINTING:
            if self._profile.selling_model is SellingModel.SUPPLIER_GENERATES:
                self._deny(
                    errors.CentralIssueOff("the meter's supplier makes its codes itself; ask the supplier for one")
                )
            elif custody is not Custody.CENTRAL:
                self._deny(errors.CounterElsewhere("the meter's counters are in other hands", custody=custody.name))
        elif self._question.operation is Operation.EXTERNALLY_ISSUED and custody is not Custody.SUPPLIER:
            self._deny(errors.CounterHere("the meter's counters are not its supplier's; have them handed over first"))

    def _of_amount(self) -> None:
        question, settings, meter = self._question, self._settings, self._meter
        if question.operation is not Operation.CREDIT:
            self._of_limits()
        if settings.max_credit_pence and question.amount > settings.max_credit_pence:
            self._deny(
                errors.AboveMaxCredit(
                    f"the meter takes at most {settings.max_credit_pence} pence at once",
                    max_credit_pence=settings.max_credit_pence,
                )
            )
        room = None if meter.balance_at == NEVER else self._room()
        if room is not None and question.amount > (told_room(room) if self._asked_only and room > 0 else room):
            # What was sold since then takes more of the room: that is looked at with the counter sequence. Whoever only
            # asks is answered in steps, or asking often would tell the balance to the penny.
            self._deny(
                errors.AboveMaxBalance("the meter's balance would go above its maximum", room_pence=told_room(room))
            )

    def _room(self) -> int | None:
        """Return the pence from the balance that was told up to the maximum; None if neither says anything now."""
        settings, meter = self._settings, self._meter
        if not settings.max_balance_pence or not 0 <= self._at.now - meter.balance_at <= BALANCE_TRUSTED_MS:
            return None
        return settings.max_balance_pence - meter.balance_pence

    def _told(self) -> BalanceTold:
        """Return the balance as it bears on the present supplier's codes. Those of an earlier one credit no more."""
        meter = self._meter
        same = meter.balance_originator_id == self._key.originator_id
        return BalanceTold(meter.balance_at, meter.balance_outstanding_pence if same else 0, self._room())

    def _of_limits(self) -> None:
        question = self._question
        limit = self._profile.limit_of(question.channel)
        if limit is None:
            return
        if limit.closed:
            self._deny(errors.ChannelNotAllowed("the supplier has closed this channel", channel=question.channel))
        elif not limit.min_pence <= question.amount <= limit.max_pence:
            self._deny(_out_of_limits(limit.min_pence, limit.max_pence, "supplier"))
        elif limit.whole_pounds and question.amount % 100:
            self._deny(_out_of_limits(limit.min_pence, limit.max_pence, "supplier, whole pounds"))


def _out_of_limits(least: int, most: int, limit_of: str) -> Refused:
    return errors.AmountOutOfLimits(
        f"the amount is outside the limits: {least} to {most} pence", min_pence=least, max_pence=most, limit_of=limit_of
    )
