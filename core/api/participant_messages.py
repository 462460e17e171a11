"""Proto <-> domain for participants. Bounds of requests are checked here."""

from utrn.v1 import participant_service_pb2 as pb

from core.api.change_messages import period_message, stamp
from core.api.validation import (
    check_profile,
    number_in,
    parse_approvers,
    parse_key_id,
    parse_point,
    parse_text,
    parse_uris,
)
from core.domain.ceiling import parse_ceiling
from core.domain.errors import BadField
from core.domain.meter import (
    parse_eui64,
)
from core.domain.participant import (
    CreditRule,
    Limit,
    Participant,
    Profile,
    Role,
    SellingModel,
    SupplierKey,
    parse_participant_id,
)
from core.registry.participants import NewParticipant


def new_participant(request: pb.AddParticipantRequest) -> NewParticipant:
    """Return who is to be brought on board."""
    one = request.participant
    role = Role(number_in(one.role, "participant.role", Role))
    if request.HasField("profile") and role is not Role.SUPPLIER:
        raise BadField("profile: suppliers may have one, others have none", field="profile")
    return NewParticipant(
        participant_id=parse_participant_id(one.participant_id, field="participant.participant_id"),
        role=role,
        name=parse_text(one.name, "participant.name", least=1, most=200),
        identities=parse_uris(one.identities, "participant.identities"),
        supplier_key=supplier_key_of(one.supplier_key, "participant.supplier_key")
        if one.HasField("supplier_key")
        else None,
        profile=profile_of(request.profile) if request.HasField("profile") else None,
        ceiling_pence=parse_ceiling(one.ceiling_pence, field="participant.ceiling_pence"),
    )


def supplier_key_of(key: pb.SupplierKey, name: str = "supplier_key") -> SupplierKey:
    """Return a supplier's key; raise BadField if one of its parts is none."""
    return SupplierKey(
        originator_id=parse_eui64(key.originator_id, field=f"{name}.originator_id"),
        key_id=parse_key_id(key.key_id, f"{name}.key_id"),
        public_point=parse_point(key.public_point, f"{name}.public_point"),
    )


def profile_of(profile: pb.Profile) -> Profile:
    """Return what a supplier chooses."""
    limits = tuple(
        Limit(
            channel=limit.channel, min_pence=limit.min_pence, max_pence=limit.max_pence,
            whole_pounds=limit.whole_pounds, closed=limit.closed,
        )
        for limit in profile.limits
    )  # fmt: skip
    credit = CreditRule(
        each_max_pence=profile.credit_each_max_pence,
        day_max_pence=profile.credit_day_max_pence,
        approvers=parse_approvers(profile.credit_approvers, "profile.credit_approvers"),
    )
    selling_model = SellingModel(number_in(profile.selling_model, "profile.selling_model", SellingModel))
    return check_profile(Profile(selling_model=selling_model, limits=limits, credit=credit), "profile")


def participant_message(participant: Participant) -> pb.Participant:
    """Return a participant and its history."""
    key = participant.supplier_key
    return pb.Participant(
        participant_id=participant.participant_id,
        role=pb.Role.ValueType(participant.role),
        name=participant.name,
        identities=participant.identities,
        supplier_key=None
        if key is None
        else pb.SupplierKey(originator_id=key.originator_id, key_id=key.key_id, public_point=key.public_point),
        identity_history=[
            pb.ParticipantIdentityPeriod(
                period=period_message(period),
                name=period.value.name,
                identities=period.value.identities,
                revoked_fingerprints=period.value.revoked.fingerprints,
                revoked_before=stamp(period.value.revoked.issued_before or None),
            )
            for period in participant.identity_history.periods
        ],
        statuses=[
            pb.ParticipantStatusPeriod(
                period=period_message(period), status=pb.ParticipantStatus.ValueType(period.value)
            )
            for period in participant.statuses.periods
        ],
        profiles=[
            pb.ProfilePeriod(period=period_message(period), profile=_profile_message(period.value))
            for period in participant.profiles.periods
        ],
        ceiling_pence=participant.ceiling_pence,
        ceilings=[
            pb.CeilingPeriod(period=period_message(period), ceiling_pence=period.value)
            for period in participant.ceilings.periods
        ],
    )


def _profile_message(profile: Profile) -> pb.Profile:
    return pb.Profile(
        selling_model=pb.SellingModel.ValueType(profile.selling_model),
        limits=[
            pb.ChannelLimit(
                channel=limit.channel,
                min_pence=limit.min_pence,
                max_pence=limit.max_pence,
                whole_pounds=limit.whole_pounds,
                closed=limit.closed,
            )
            for limit in profile.limits
        ],
        credit_each_max_pence=profile.credit.each_max_pence,
        credit_day_max_pence=profile.credit.day_max_pence,
        credit_approvers=sorted(profile.credit.approvers),
    )
