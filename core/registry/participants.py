"""Participants: brought on board, suspended, offboarded by an operator; profiles chosen by the suppliers themselves."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from core.access.approvals import Consents
from core.access.roles import KEEPERS, OPERATORS, SELLERS, require_owner, require_role
from core.domain.approval import NO_CONSENT_NEEDED, Asked, Consent
from core.domain.effective_dated import EffectiveDated, Ms, begin, ms_of
from core.domain.errors import BadField, HistoryFull, ParticipantNotFound, RecordChanged, RecordExists
from core.domain.meter import MeterCapabilities, Model
from core.domain.money import Pence
from core.domain.participant import (
    AGREED_CEILING,
    NO_PROFILES,
    Participant,
    ParticipantId,
    ParticipantIdentity,
    ParticipantStatus,
    Principal,
    Profile,
    Revocations,
    Role,
    SupplierKey,
)
from core.domain.record import Kind, Ref, Versioned
from core.ports.clock import Clock
from core.ports.registry import RegistryStore, RegistryWrite
from core.transaction import Reads, Written, transact

# A profile may be some kilobytes; an operator must always be able to suspend whoever it is of.
_PROFILES_MAX = 100
_CEILINGS_MAX = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class NewParticipant:
    """The fields of a participant to be registered."""

    participant_id: ParticipantId
    role: Role
    name: str
    identities: tuple[str, ...]
    supplier_key: SupplierKey | None = None
    profile: Profile | None = None
    ceiling_pence: Pence | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ParticipantAdmin:
    """Changes participants and models. Every change is one write, based on what was read."""

    store: RegistryStore
    clock: Clock
    consents: Consents

    async def add(self, principal: Principal, new: NewParticipant, *, asked: Asked | None = None) -> Written:
        """Bring a participant on board; adding it again as it is changes nothing. An operator needs two of them.

        Raises:
            RecordExists: the name, a certificate or an originator is taken.
            NeedsApproval, SecondOperatorNeeded: it is an operator.
        """
        require_role(principal, OPERATORS)
        if (new.role is Role.SUPPLIER) is not (new.supplier_key is not None):
            raise BadField("supplier_key: suppliers need one, others have none", field="supplier_key")
        if new.ceiling_pence and new.role not in SELLERS:
            raise BadField("ceiling_pence: PSPs and suppliers may have one, others sell nothing", field="ceiling_pence")
        before = await self.store.read(Participant, new.participant_id)
        if before is not None:
            return _same(before, new)
        consent = NO_CONSENT_NEEDED
        if new.role is Role.OPERATOR:
            consent = await self.consents.to_add_operator(principal, asked)
        now, by = ms_of(self.clock.now()), principal.participant_id
        participant = Participant(
            participant_id=new.participant_id,
            role=new.role,
            identity_history=begin(
                ParticipantIdentity(name=new.name, identities=new.identities), since=None, now=now, by=by
            ),
            statuses=begin(ParticipantStatus.ACTIVE, since=None, now=now, by=by),
            supplier_key=new.supplier_key,
            profiles=NO_PROFILES if new.profile is None else begin(new.profile, since=None, now=now, by=by),
            ceilings=AGREED_CEILING if not new.ceiling_pence else begin(new.ceiling_pence, since=None, now=now, by=by),
        )
        claims = [(Ref(Kind.IDENTITY, identity), str(new.participant_id)) for identity in new.identities]
        if new.supplier_key is not None:
            claims.append((Ref(Kind.ORIGINATOR, new.supplier_key.originator_id), str(new.participant_id)))
        expect = [(_ref(new.participant_id), 0)]
        write = RegistryWrite(expect=expect, put=[participant], claim=claims, consent=consent)
        revision = await self.store.write(write)
        if revision is None:
            raise RecordExists("the name, a certificate or the originator is taken by another", kind="participant")
        return Written(revision=revision)

    async def set_identities(
        self,
        principal: Principal,
        participant_id: ParticipantId,
        name: str,
        identities: tuple[str, ...],
        *,
        asked: Asked | None = None,
    ) -> Written:
        """Change a participant's name and certificates, at once; an operator's need two operators.

        Raises:
            ParticipantNotFound: no participant has this id.
            RecordExists: another participant has one of the certificates.
            NeedsApproval, SecondOperatorNeeded: it is an operator.
        """
        require_role(principal, OPERATORS)
        before = await self._known(self.store, participant_id)
        if before.record.status is ParticipantStatus.LEFT:
            raise _left()
        last = before.record.identity_history.last
        identity = ParticipantIdentity(name=name, identities=identities, revoked=before.record.revoked)
        if last is not None and last.value == identity:
            return Written(revision=before.revision, changed=False)
        consent = NO_CONSENT_NEEDED
        if before.record.role is Role.OPERATOR:
            consent = await self.consents.to_add_operator(principal, asked)
        now, by = ms_of(self.clock.now()), principal.participant_id
        after = replace(
            before.record, identity_history=before.record.identity_history.change(identity, since=None, now=now, by=by)
        )
        added = set(identities) - set(before.record.identities)
        gone = set(before.record.identities) - set(identities)
        write = RegistryWrite(
            expect=[(_ref(participant_id), before.revision)],
            put=[after],
            claim=[(Ref(Kind.IDENTITY, identity), str(participant_id)) for identity in sorted(added)],
            release=[Ref(Kind.IDENTITY, identity) for identity in sorted(gone)],
            consent=consent,
        )
        revision = await self.store.write(write)
        if revision is None:
            raise RecordExists("a certificate is taken by another participant", kind="identity")
        return Written(revision=revision)

    async def revoke(self, principal: Principal, participant_id: ParticipantId, more: Revocations) -> Written:
        """Revoke certificates of a participant, at once and for good; of one that has left too, which may look up.

        One operator does it, an operator's too: it protects people. The last active operator's are not revoked.

        Raises:
            ParticipantNotFound: no participant of this name.
            BadField: too many fingerprints.
            LastOperator: nobody could act.
        """
        require_role(principal, OPERATORS)
        now, by = ms_of(self.clock.now()), principal.participant_id

        def change(participant: Participant) -> Participant:
            last, revoked = participant.identity_history.last, participant.revoked.and_also(more)
            if last is None or revoked == participant.revoked:
                return participant
            identity = replace(last.value, revoked=revoked)
            return replace(
                participant, identity_history=participant.identity_history.change(identity, since=None, now=now, by=by)
            )

        async def consent(participant: Participant) -> Consent:
            operator = participant.role is Role.OPERATOR and participant.status is ParticipantStatus.ACTIVE
            return await self.consents.to_bar_operator(participant_id) if operator else NO_CONSENT_NEEDED

        return await self._update(participant_id, change, consent)

    async def set_supplier_key(
        self, principal: Principal, participant_id: ParticipantId, key: SupplierKey, *, asked: Asked | None = None
    ) -> Written:
        """Correct which HSM key a supplier's codes are made with, at once; its originator stays as it is.

        A sale under way with the key before does not commit: its transaction compares the supplier's record.

        Raises:
            ParticipantNotFound: no supplier of this name.
            BadField: it is another originator.
            NeedsApproval, SecondOperatorNeeded: two operators are needed.
        """
        require_role(principal, OPERATORS)

        def change(participant: Participant) -> Participant:
            if participant.role is not Role.SUPPLIER or participant.supplier_key is None:
                raise ParticipantNotFound("no supplier of this name", participant_id=participant_id)
            if participant.supplier_key.originator_id != key.originator_id:
                raise BadField(
                    f"supplier_key.originator_id: is {participant.supplier_key.originator_id}, which can never change",
                    field="supplier_key.originator_id",
                )
            return replace(participant, supplier_key=key)

        async def consent(_: Participant) -> Consent:
            return await self.consents.of_two(principal, asked)

        return await self._update(participant_id, change, consent)

    async def set_status(
        self,
        principal: Principal,
        participant_id: ParticipantId,
        status: ParticipantStatus,
        *,
        asked: Asked | None = None,
    ) -> Written:
        """Suspend, readmit or offboard a participant, at once. Whoever leaves gives its certificates up.

        To end a supplier, or an operator, and to readmit an operator needs two operators. To suspend never does: it
        protects people. The last active operator is neither suspended nor ended. A supplier that has left comes back
        by two operators, with the certificates it had, since its originator, which its meters know, is nobody else's.

        Raises:
            NeedsApproval: another operator has to approve first.
            SecondOperatorNeeded: there is no second operator who could approve.
            LastOperator: the participant is the last active operator.
            RecordChanged: it has left, and is no supplier; or one of its certificates is another's by now.
        """
        require_role(principal, OPERATORS)
        now, by = ms_of(self.clock.now()), principal.participant_id

        def change(participant: Participant) -> Participant:
            if participant.status is status:
                return participant
            if participant.status is ParticipantStatus.LEFT and participant.role is not Role.SUPPLIER:
                raise _left()
            return replace(participant, statuses=participant.statuses.change(status, since=None, now=now, by=by))

        async def consent(participant: Participant) -> Consent:
            operator, found = participant.role is Role.OPERATOR, NO_CONSENT_NEEDED
            if operator and status is not ParticipantStatus.ACTIVE:
                found = await self.consents.to_bar_operator(participant_id)
            ends = ParticipantStatus.LEFT in (status, participant.status) and participant.role is Role.SUPPLIER
            if ends or (operator and status is not ParticipantStatus.SUSPENDED):
                found = found.and_of(await self.consents.of_two(principal, asked))
            return found

        return await self._update(participant_id, change, consent)

    async def set_ceiling(self, principal: Principal, participant_id: ParticipantId, pence: Pence) -> Written:
        """Set the most that a seller may sell in an hour, at once; 0 for the agreed ceiling.

        Raises:
            ParticipantNotFound: no seller of this name.
            HistoryFull: it has been changed too often.
        """
        require_role(principal, OPERATORS)
        now, by = ms_of(self.clock.now()), principal.participant_id

        def change(participant: Participant) -> Participant:
            if participant.role not in SELLERS:
                raise ParticipantNotFound("no PSP or supplier of this name", participant_id=participant_id)
            if participant.ceiling_pence == pence:
                return participant
            if len(participant.ceilings.periods) >= _CEILINGS_MAX:
                raise HistoryFull("no more ceilings of this seller can be kept", periods_max=_CEILINGS_MAX)
            return replace(participant, ceilings=participant.ceilings.change(pence, since=None, now=now, by=by))

        return await self._update(participant_id, change)

    async def set_profile(
        self, principal: Principal, supplier_id: ParticipantId, profile: Profile, since: Ms | None
    ) -> Written:
        """Choose who may issue and deliver for a supplier's meters, with which limits, from `since` on."""
        require_role(principal, KEEPERS)
        require_owner(principal, supplier_id)
        now, by = ms_of(self.clock.now()), principal.participant_id

        def change(participant: Participant) -> Participant:
            if participant.role is not Role.SUPPLIER:
                raise ParticipantNotFound("no supplier of this name", participant_id=supplier_id)
            profiles = participant.profiles.put(profile, since=since, now=now, by=by)
            if len(profiles.periods) > max(_PROFILES_MAX, len(participant.profiles.periods)):
                raise HistoryFull("no more profiles of this supplier can be kept", periods_max=_PROFILES_MAX)
            return replace(participant, profiles=profiles)

        return await self._update(supplier_id, change)

    async def cancel_profile(self, principal: Principal, supplier_id: ParticipantId) -> Written:
        """Cancel the profile that waits for its instant.

        Raises:
            NothingToEnd: none waits.
        """
        require_role(principal, KEEPERS)
        require_owner(principal, supplier_id)
        now = ms_of(self.clock.now())
        return await self._update(
            supplier_id, lambda supplier: replace(supplier, profiles=supplier.profiles.cancel(now=now))
        )

    async def set_model(
        self, principal: Principal, make: str, model: str, abilities: MeterCapabilities, since: Ms | None
    ) -> Written:
        """Say what the meters of a model can do from `since` on."""
        require_role(principal, OPERATORS)

        async def attempt(reads: Reads) -> RegistryWrite | Written:
            before = await reads.read(Model, make, model)
            rows: EffectiveDated[MeterCapabilities] = EffectiveDated() if before is None else before.record.abilities
            now, by = ms_of(self.clock.now()), principal.participant_id
            row = Model(make=make, model=model, abilities=rows.put(abilities, since=since, now=now, by=by))
            if before is not None and row == before.record:
                return Written(revision=before.revision, changed=False)
            return RegistryWrite(put=[row])

        return await transact(self.store, attempt, overtaken=_overtaken())

    async def _update(
        self,
        participant_id: ParticipantId,
        change: Callable[[Participant], Participant],
        consent: Callable[[Participant], Awaitable[Consent]] | None = None,
    ) -> Written:
        async def attempt(reads: Reads) -> RegistryWrite | Written:
            before = await self._known(reads, participant_id)
            after = change(before.record)
            if after == before.record:
                return Written(revision=before.revision, changed=False)
            had, has = set(before.record.identities), set(after.identities)
            return RegistryWrite(
                put=[after],
                claim=[(Ref(Kind.IDENTITY, identity), str(participant_id)) for identity in sorted(has - had)],
                release=[Ref(Kind.IDENTITY, identity) for identity in sorted(had - has)],
                consent=NO_CONSENT_NEEDED if consent is None else await consent(before.record),
            )

        return await transact(self.store, attempt, overtaken=_overtaken())

    async def _known(self, reads: Reads | RegistryStore, participant_id: ParticipantId) -> Versioned[Participant]:
        known = await reads.read(Participant, participant_id)
        if known is None:
            raise ParticipantNotFound("no participant of this name", participant_id=participant_id)
        return known


def _same(before: Versioned[Participant], new: NewParticipant) -> Written:
    one = before.record
    if (one.role, one.name, one.identities, one.supplier_key) != (
        new.role,
        new.name,
        new.identities,
        new.supplier_key,
    ) or one.status is ParticipantStatus.LEFT:
        raise RecordExists("a participant of this name is there, with other content", kind="participant")
    return Written(revision=before.revision, changed=False)


def _left() -> RecordChanged:
    return RecordChanged("the participant has left; bring it on board under another name", kind="participant")


def _ref(participant_id: ParticipantId) -> Ref:
    return Ref(Kind.PARTICIPANT, participant_id)


def _overtaken() -> RecordChanged:
    return RecordChanged("others keep changing this record; look at it, and repeat if it is still right", kind="")
