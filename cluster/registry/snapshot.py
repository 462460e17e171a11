"""RegistrySnapshot: records of the registry in memory; meters and PANs are kept as read, and understood when asked.

With a million meters a copy must be small and quick to make: a record is kept as its bytes and its revision, which the
garbage collector need not look at, and is decoded for the one request that needs it. A record that this program cannot
understand is set aside: a question that needs it is answered NOT_READY, never as if it were not there.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar, cast

from etcdpb import rpc_pb2 as pb

from cluster.codec.meter import mirrored_card, mirrored_meter
from cluster.codec.registry import record_of
from cluster.codec.set_aside import SetAsideRecords
from cluster.codec.vend import GARBLED, Unreadable, check_schema, understand
from cluster.etcd.keys import Keys
from cluster.registry.due_queue import Reminder, Reminders
from cluster.registry.pan_index import PanIndex
from core.domain.appointment import Appointments
from core.domain.effective_dated import NEVER, Ms
from core.domain.errors import NotReady
from core.domain.grant import Grants
from core.domain.meter import Meter, MeterId, Model, Pan, PanRecord
from core.domain.participant import Participant, ParticipantId, ParticipantStatus
from core.domain.record import Kind, Versioned
from core.ports.registry import Registry

_T = TypeVar("_T")
# A named tuple made by its own name takes twice as long; every request makes two of these.
_new = tuple.__new__
# About two milliseconds of work, at most, before others have their turn.
_SEARCHED_AT_ONCE = 20_000
_FOUND_AT_ONCE = 100


class RegistrySnapshot:
    """Records in memory: the copy of a whole registry, or the few that one transaction has read."""

    ready = True

    def __init__(self, keys: Keys, aside: SetAsideRecords | None = None) -> None:
        self._keys = keys
        self._aside = SetAsideRecords() if aside is None else aside
        # What cannot be understood: the revision of each, by the room it lies in.
        self._unread: dict[str, dict[str, int]] = {}
        self._raw: dict[Kind, dict[str, tuple[int, bytes]]] = {Kind.METER: {}, Kind.PAN: {}}
        self._meters, self._pans = self._raw[Kind.METER], self._raw[Kind.PAN]
        self._raw_by_name = {str(kind): records for kind, records in self._raw.items()}
        self._by_meter = PanIndex()
        self._decoded: dict[Kind, dict[str, Versioned[object]]] = {
            Kind.PARTICIPANT: {},
            Kind.APPOINTMENT: {},
            Kind.MODEL: {},
        }
        self._callers: dict[str, Participant] = {}
        self._departed: dict[str, Participant] = {}
        self.due = Reminders()
        self.grants: Grants = {}

    def caller(self, identity: str) -> Participant | None:
        """Return the participant that uses the SAN URI `identity`.

        Raises:
            NotReady: it may be one whose record is set aside.
        """
        found = self._callers.get(identity)
        if found is None and self._unread.get(Kind.PARTICIPANT):
            raise NotReady("this node cannot understand every participant's record; ask another node, or the operator")
        return found

    def departed(self, identity: str) -> Participant | None:
        """Return the participant that used the SAN URI `identity` when it left, if nobody uses it now."""
        return None if identity in self._callers else self._departed.get(identity)

    def participant(self, participant_id: ParticipantId) -> Versioned[Participant] | None:
        """Return a participant. This and the others raise NotReady if the record is set aside."""
        return cast("Versioned[Participant] | None", self._find(Kind.PARTICIPANT, participant_id))

    def card(self, pan: Pan) -> Versioned[PanRecord] | None:
        """Return a PAN."""
        found = self._pans.get(pan)
        if found is None:
            self._not_aside(Kind.PAN, pan)
            return None
        try:
            return _new(Versioned, (mirrored_card(found[1]), found[0]))
        except GARBLED as error:
            raise self._garbled(Kind.PAN, pan, found[0], error) from error

    def meter(self, meter_id: MeterId) -> Versioned[Meter] | None:
        """Return a meter."""
        found = self._meters.get(meter_id)
        if found is None:
            self._not_aside(Kind.METER, meter_id)
            return None
        try:
            return _new(Versioned, (mirrored_meter(found[1]), found[0]))
        except GARBLED as error:
            raise self._garbled(Kind.METER, meter_id, found[0], error) from error

    def appointments(self, supplier_id: ParticipantId, psp_id: ParticipantId) -> Versioned[Appointments] | None:
        """Return what a supplier has appointed a PSP to."""
        return cast("Versioned[Appointments] | None", self._find(Kind.APPOINTMENT, f"{supplier_id}/{psp_id}"))

    def model(self, make: str, model: str) -> Versioned[Model] | None:
        """Return what the meters of a model can do."""
        return cast("Versioned[Model] | None", self._find(Kind.MODEL, f"{make}/{model}"))

    def _find(self, kind: Kind, record_id: str) -> Versioned[object] | None:
        found = self._decoded[kind].get(record_id)
        if found is None:
            self._not_aside(kind, record_id)
        return found

    def _not_aside(self, kind: Kind, record_id: str) -> None:
        """Return if a record that was not found is not there, and not only set aside."""
        if self._unread and record_id in self._unread.get(kind, ()):
            raise _not_ready(kind, record_id)

    def _garbled(self, kind: Kind, record_id: str, revision: int, error: Exception) -> NotReady:
        self._aside.note(kind, self._keys.record(kind, record_id), revision, error)
        return _not_ready(kind, record_id)

    def cards_of(self, meter_id: MeterId) -> list[PanRecord]:
        """Return every PAN whose record mentions a meter; one that cannot be understood is passed over, and alarmed."""
        found: list[PanRecord] = []
        for pan in self._by_meter.pans_of(meter_id):
            with suppress(NotReady):
                known = self.card(Pan(pan))
                if known is not None and any(use.value.meter_id == meter_id for use in known.record.uses.periods):
                    found.append(known.record)
        return found

    async def search(self, kind: Kind, about: str, of: Callable[[bytes], _T]) -> AsyncIterator[_T]:
        """Yield the meters or PANs that mention `about`; gives way to other work now and then.

        One that cannot be understood is passed over, and alarmed.
        """
        needle, found = about.encode(), 0
        for number, (record_id, (revision, value)) in enumerate(list(self._raw[kind].items()), start=1):
            if needle in value:
                found += 1
                try:
                    yield understand(of, value)
                except Unreadable as error:
                    self._garbled(kind, record_id, revision, error)
            if number % _SEARCHED_AT_ONCE == 0 or found == _FOUND_AT_ONCE:
                found = 0
                await asyncio.sleep(0)

    @property
    def counts(self) -> dict[str, int]:
        """How many records of each kind there are."""
        raw = {str(kind): len(records) for kind, records in self._raw.items()}
        return raw | {str(kind): len(records) for kind, records in self._decoded.items()}

    def counts_aside(self) -> int:
        """Return how many records are set aside."""
        return sum(len(records) for records in self._unread.values())

    def participants(self) -> Iterator[Participant]:
        """Every participant."""
        return (cast("Participant", known.record) for known in self._decoded[Kind.PARTICIPANT].values())

    def apply(self, record: pb.KeyValue, *, gone: bool) -> None:
        """Take a change in; what cannot be understood is set aside."""
        room, _, record_id = record.key[len(self._keys.registry()) :].decode(errors="surrogateescape").partition("/")
        unread = self._unread.get(room)
        if unread and unread.pop(record_id, None) is not None:
            self._aside.clear(room, record.key)
            if not unread:
                del self._unread[room]
        if gone:
            self._apply_gone(room, record_id)
            return
        try:
            self._apply(room, record_id, record)
        except GARBLED as error:
            # What was known of it before holds no more.
            self._apply_gone(room, record_id)
            self._unread.setdefault(room, {})[record_id] = record.mod_revision
            self._aside.note(room, record.key, record.mod_revision, error)

    def _apply(self, room: str, record_id: str, record: pb.KeyValue) -> None:
        raw = self._raw_by_name.get(room)
        if raw is not None:
            value = record.value
            check_schema(value)
            self._put_raw(room, raw, record_id, (record.mod_revision, value))
        elif room == Kind.DUE:
            self.due.add(_reminder(record_id), record.mod_revision)
        else:
            kind = Kind(room)
            known = Versioned(record_of(kind, record.value), record.mod_revision)
            self._drop_decoded(kind, record_id)
            self._decoded[kind][record_id] = known
            if isinstance(known.record, Participant):
                self._callers.update(dict.fromkeys(known.record.identities, known.record))
                if known.record.status is ParticipantStatus.LEFT:
                    self._keep_departed(known.record)

    def _apply_gone(self, room: str, record_id: str) -> None:
        raw = self._raw_by_name.get(room)
        if raw is not None:
            self._put_raw(room, raw, record_id, None)
        elif room in self._decoded:
            self._drop_decoded(Kind(room), record_id)
        elif room == Kind.DUE:
            with suppress(*GARBLED):
                self.due.discard(_reminder(record_id))

    def _put_raw(
        self, room: str, raw: dict[str, tuple[int, bytes]], record_id: str, after: tuple[int, bytes] | None
    ) -> None:
        if room == Kind.PAN:
            before = raw.get(record_id)
            self._by_meter.change(record_id, None if before is None else before[1], None if after is None else after[1])
        if after is None:
            raw.pop(record_id, None)
        else:
            raw[record_id] = after

    def _drop_decoded(self, kind: Kind, record_id: str) -> None:
        self.grants.clear()
        before = self._decoded[kind].pop(record_id, None)
        if before is not None and isinstance(before.record, Participant):
            for identity in before.record.identities:
                holder = self._callers.get(identity)
                # Given up by one and taken by another: in whichever order they are told of, it is the taker's.
                if holder is not None and holder.participant_id == before.record.participant_id:
                    del self._callers[identity]

    def _keep_departed(self, participant: Participant) -> None:
        """Remember by which certificates a participant was known that has left; the latest, if several had one."""
        last = participant.identity_history.last
        for identity in () if last is None else last.value.identities:
            other = self._departed.get(identity)
            if other is None or _left_at(other) <= _left_at(participant):
                self._departed[identity] = participant

    def parts(self) -> list[bytes]:
        """Return the prefix of each kind of record."""
        return [self._keys.records(kind) for kind in (*self._raw, *self._decoded, Kind.DUE)]

    def names(self, part: bytes) -> list[str]:
        """Return the ids of a kind."""
        room = self._room(part)
        kept: Iterable[str] = self._raw_by_name.get(room) or self._decoded.get(Kind(room)) or ()
        if room == Kind.DUE:
            kept = self.due.names()
        return [*kept, *self._unread.get(room, ())]

    def revision_of(self, part: bytes, name: str) -> int:
        """Return the revision of what is kept of a record; 0 if it is not there."""
        room = self._room(part)
        raw = self._raw_by_name.get(room)
        if raw is not None:
            found = raw.get(name)
            revision = 0 if found is None else found[0]
        elif room == Kind.DUE:
            revision = self.due.revision_of(name)
        else:
            known = self._decoded.get(Kind(room), {}).get(name) if room in self._decoded else None
            revision = 0 if known is None else known.revision
        return revision or self._unread.get(room, {}).get(name, 0)

    def _room(self, part: bytes) -> str:
        return part[len(self._keys.registry()) : -1].decode()


def _left_at(participant: Participant) -> Ms:
    last = participant.statuses.last
    return NEVER if last is None else last.since


def _reminder(record_id: str) -> Reminder:
    at, meter_id = record_id.split("/")
    return Ms(int(at)), MeterId(meter_id)


def _not_ready(kind: str, record_id: str) -> NotReady:
    return NotReady(
        "a record that this depends on cannot be understood by this node; ask another node, or the operator",
        kind=kind, record=f"..{record_id[-4:]}" if kind == Kind.PAN else record_id,
    )  # fmt: skip


if TYPE_CHECKING:
    _: type[Registry] = RegistrySnapshot
