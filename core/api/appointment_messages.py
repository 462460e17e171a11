"""Proto <-> domain for appointments. Bounds of requests are checked here."""

import re
from collections.abc import Sequence

from google.protobuf.message import DecodeError
from utrn.v1 import appointment_service_pb2 as pb

from core.api.change_messages import stamp
from core.api.validation import (
    check_amounts,
    instant,
    number_in,
    parse_certificate,
    parse_intermediates,
)
from core.domain.appointment import Appointment, Evidence, Terms
from core.domain.effective_dated import Ms, check_dates
from core.domain.errors import BadField
from core.domain.participant import (
    PspPermission,
    parse_participant_id,
)
from core.domain.vend import SOLD_THROUGH
from core.registry.bulk_load import SignedAppointment

_BYTES_MAX = {"terms": 2000, "signature": 200, "certificate": 4000}
_APPOINTMENT_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}", re.ASCII)


def signed_appointment(request: pb.AppointRequest, *, now: Ms) -> SignedAppointment:
    """Return signed terms and their evidence; raise BadField or DatesReversed. Who signed is asked later."""
    signed = request.signed_terms
    for name, most in _BYTES_MAX.items():
        if not 1 <= len(getattr(signed, name)) <= most:
            field = f"signed_terms.{name}"
            raise BadField(f"{field}: 1 to {most} bytes are needed", field=field)
    try:
        terms = pb.AppointmentTerms.FromString(signed.terms)
    except DecodeError as error:
        field = "signed_terms.terms"
        raise BadField(f"{field}: a serialized AppointmentTerms is needed", field=field) from error
    evidence = Evidence(
        terms=signed.terms,
        signature=signed.signature,
        certificate=parse_certificate(signed.certificate, "signed_terms.certificate"),
        intermediates=parse_intermediates(signed.intermediates, "signed_terms.intermediates"),
    )
    return SignedAppointment(terms=terms_of(terms, "signed_terms.terms", now=now), evidence=evidence)


def terms_of(terms: pb.AppointmentTerms, name: str, *, now: Ms | None = None) -> Terms:
    """Return terms, which begin at most 10 years after `now`; raise BadField or DatesReversed if they are none."""
    if not _APPOINTMENT_ID.fullmatch(terms.appointment_id):
        raise BadField(f"{name}.appointment_id: 1 to 64 of a-z, 0-9 and - are needed", field=f"{name}.appointment_id")
    check_amounts(terms.min_pence, terms.max_pence, name)
    for channel in terms.channels:
        number_in(channel, f"{name}.channels", SOLD_THROUGH)
    if not terms.HasField("since"):
        raise BadField(f"{name}.since: is missing", field=f"{name}.since")
    since = instant(terms.since, f"{name}.since", now=now)
    until = instant(terms.until, f"{name}.until") if terms.HasField("until") else None
    check_dates(since, until)
    return Terms(
        appointment_id=terms.appointment_id,
        supplier_id=parse_participant_id(terms.supplier_id, field=f"{name}.supplier_id"),
        psp_id=parse_participant_id(terms.psp_id, field=f"{name}.psp_id"),
        level=PspPermission(
            number_in(terms.level, f"{name}.level", (PspPermission.ISSUE, PspPermission.ISSUE_AND_DELIVER))
        ),
        channels=frozenset(terms.channels),
        min_pence=terms.min_pence,
        max_pence=terms.max_pence,
        since=since,
        until=until,
    )


def appointment_messages(every: Sequence[Appointment]) -> list[pb.Appointment]:
    """Return appointments with evidence and history."""
    return [
        pb.Appointment(
            terms=pb.AppointmentTerms.FromString(appointment.evidence.terms),
            evidence=pb.SignedTerms(
                terms=appointment.evidence.terms,
                signature=appointment.evidence.signature,
                certificate=appointment.evidence.certificate,
                intermediates=appointment.evidence.intermediates,
            ),
            states=[
                pb.AppointmentStatePeriod(
                    state=pb.AppointmentState.ValueType(period.value),
                    since=stamp(period.since),
                    by=period.recorded_by,
                )
                for period in appointment.states.periods
            ],
        )
        for appointment in every
    ]
