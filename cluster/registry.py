"""EtcdRegistry: a watched copy of the registry. Meters and PANs are kept as they were read, and understood when asked.

With a million meters a copy must be small and quick to make: a record is kept as its bytes and its revision, which the
garbage collector need not look at, and is decoded for the one request that needs it.
"""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, NoReturn, cast

from etcdpb import rpc_pb2 as pb

from cluster.client import Compacted, EtcdClient, EtcdUnreachable
from cluster.config import EtcdConfig
from cluster.keys import Keys
from cluster.records import check_schema
from cluster.registry_records import record_of
from cluster.reminders import Reminders
from cluster.stored_meters import mirrored_card, mirrored_meter
from core.domain.appointment import Appointments
from core.domain.eligibility import Says
from core.domain.meter import Card, Meter, MeterId, Model, Pan
from core.domain.party import Participant, ParticipantId, Standing, SupplierKey
from core.domain.registry import Kind, Known
from core.domain.timeline import NEVER, Ms
from core.ports.registry import Registry, RegistryBook

log = logging.getLogger(__name__)

# A named tuple made by its own name takes twice as long; every request makes two of these.
_new = tuple.__new__
_RETRY_AFTER_S = 0.1
# About two milliseconds of work, at most, before others have their turn.
_SEARCHED_AT_ONCE = 20_000
_FOUND_AT_ONCE = 100


class Copy:
    """Records in memory. Also what a snapshot of a few records is made of."""

    ready = True

    def __init__(self) -> None:
        self._raw: dict[Kind, dict[str, tuple[int, bytes]]] = {Kind.METER: {}, Kind.PAN: {}}
        self._meters, self._pans = self._raw[Kind.METER], self._raw[Kind.PAN]
        self._raw_by_name = {str(kind): records for kind, records in self._raw.items()}
        self._decoded: dict[Kind, dict[str, Known[object]]] = {
            Kind.PARTICIPANT: {},
            Kind.APPOINTMENT: {},
            Kind.MODEL: {},
        }
        self._callers: dict[str, Participant] = {}
        self._departed: dict[str, Participant] = {}
        self.due = Reminders()
        self.says: Says = {}

    def caller(self, identity: str) -> Participant | None:
        """Return the participant that uses the SAN URI `identity`."""
        return self._callers.get(identity)

    def departed(self, identity: str) -> Participant | None:
        """Return the participant that used the SAN URI `identity` when it left, if nobody uses it now."""
        return None if identity in self._callers else self._departed.get(identity)

    def participant(self, participant_id: ParticipantId) -> Known[Participant] | None:
        """Return a participant."""
        return cast("Known[Participant] | None", self._decoded[Kind.PARTICIPANT].get(participant_id))

    def card(self, pan: Pan) -> Known[Card] | None:
        """Return a PAN."""
        found = self._pans.get(pan)
        return None if found is None else _new(Known, (mirrored_card(found[1]), found[0]))

    def meter(self, meter_id: MeterId) -> Known[Meter] | None:
        """Return a meter."""
        found = self._meters.get(meter_id)
        return None if found is None else _new(Known, (mirrored_meter(found[1]), found[0]))

    def appointments(self, supplier_id: ParticipantId, psp_id: ParticipantId) -> Known[Appointments] | None:
        """Return what a supplier has appointed a PSP to."""
        found = self._decoded[Kind.APPOINTMENT].get(f"{supplier_id}/{psp_id}")
        return cast("Known[Appointments] | None", found)

    def model(self, make: str, model: str) -> Known[Model] | None:
        """Return what the meters of a model can do."""
        return cast("Known[Model] | None", self._decoded[Kind.MODEL].get(f"{make}/{model}"))

    async def search(self, kind: Kind, about: str) -> AsyncIterator[bytes]:
        """Yield meters or PANs, as bytes, that mention `about`; gives way to other work now and then."""
        needle, found = about.encode(), 0
        for number, (_, value) in enumerate(list(self._raw[kind].values()), start=1):
            if needle in value:
                found += 1
                yield value
            if number % _SEARCHED_AT_ONCE == 0 or found == _FOUND_AT_ONCE:
                found = 0
                await asyncio.sleep(0)

    @property
    def counts(self) -> dict[str, int]:
        """How many records of each kind there are."""
        raw = {str(kind): len(records) for kind, records in self._raw.items()}
        return raw | {str(kind): len(records) for kind, records in self._decoded.items()}

    def participants(self) -> Iterator[Participant]:
        """Every participant."""
        return (cast("Participant", known.record) for known in self._decoded[Kind.PARTICIPANT].values())

    def apply(self, keys: Keys, record: pb.KeyValue, *, gone: bool) -> None:
        """Take a change in."""
        kind_name, record_id = keys.parse_registry(record.key)
        raw = self._raw_by_name.get(kind_name)
        if raw is not None:
            if gone:
                raw.pop(record_id, None)
            else:
                value = record.value
                check_schema(value)
                raw[record_id] = (record.mod_revision, value)
            return
        kind = Kind(kind_name)
        if kind is Kind.DUE:
            at, meter_id = record_id.split("/")
            (self.due.discard if gone else self.due.add)((Ms(int(at)), MeterId(meter_id)))
        else:
            self._apply_decoded(kind, record_id, record, gone=gone)

    def _apply_decoded(self, kind: Kind, record_id: str, record: pb.KeyValue, *, gone: bool) -> None:
        self.says.clear()
        before = self._decoded[kind].pop(record_id, None)
        if before is not None and isinstance(before.record, Participant):
            for identity in before.record.identities:
                holder = self._callers.get(identity)
                # Given up by one and taken by another: in whichever order they are told of, it is the taker's.
                if holder is not None and holder.participant_id == before.record.participant_id:
                    del self._callers[identity]
        if gone:
            return
        known = Known(record_of(kind, record.value), record.mod_revision)
        self._decoded[kind][record_id] = known
        if isinstance(known.record, Participant):
            self._callers.update(dict.fromkeys(known.record.identities, known.record))
            if known.record.standing is Standing.LEFT:
                self._keep_departed(known.record)

    def _keep_departed(self, one: Participant) -> None:
        """Remember by which certificates a participant was known that has left; the latest, if several had one."""
        known_as = one.known_as.last
        for identity in () if known_as is None else known_as.value.identities:
            other = self._departed.get(identity)
            if other is None or _left_at(other) <= _left_at(one):
                self._departed[identity] = one


def _left_at(one: Participant) -> Ms:
    last = one.standings.last
    return NEVER if last is None else last.since


class EtcdRegistry:
    """The registry, from memory."""

    def __init__(self, client: EtcdClient, config: EtcdConfig) -> None:
        self._client = client
        self._keys = Keys(config.prefix)
        self._copy = Copy()
        self._complete = asyncio.Event()

    @property
    def ready(self) -> bool:
        """True once the copy is complete."""
        return self._complete.is_set()

    @property
    def says(self) -> Says:
        """What was found of callers and suppliers lately."""
        return self._copy.says

    def caller(self, identity: str) -> Participant | None:
        """Return the participant that uses the SAN URI `identity`."""
        return self._copy.caller(identity)

    def departed(self, identity: str) -> Participant | None:
        """Return the participant that used the SAN URI `identity` when it left, if nobody uses it now."""
        return self._copy.departed(identity)

    def participant(self, participant_id: ParticipantId) -> Known[Participant] | None:
        """Return a participant."""
        return self._copy.participant(participant_id)

    def card(self, pan: Pan) -> Known[Card] | None:
        """Return a PAN."""
        return self._copy.card(pan)

    def meter(self, meter_id: MeterId) -> Known[Meter] | None:
        """Return a meter."""
        return self._copy.meter(meter_id)

    def appointments(self, supplier_id: ParticipantId, psp_id: ParticipantId) -> Known[Appointments] | None:
        """Return what a supplier has appointed a PSP to."""
        return self._copy.appointments(supplier_id, psp_id)

    def model(self, make: str, model: str) -> Known[Model] | None:
        """Return what the meters of a model can do."""
        return self._copy.model(make, model)

    def due_by(self, now: Ms) -> list[tuple[Ms, MeterId]]:
        """Return the meters whose change is due, earliest first; some at a time."""
        return self._copy.due.due_by(now)

    def supplier_keys(self) -> list[SupplierKey]:
        """Return the prepayment key of every supplier."""
        return [one.supplier_key for one in self._copy.participants() if one.supplier_key is not None]

    async def pans_of(self, meter_id: MeterId) -> list[Card]:
        """Return every PAN that stands, stood or will stand for a meter. Searches all of them, giving way to others."""
        return [card async for card in self.cards(meter_id)]

    async def cards(self, about: str) -> AsyncIterator[Card]:
        """Return every PAN whose record mentions `about`."""
        async for value in self._copy.search(Kind.PAN, about):
            yield mirrored_card(value)

    async def meters(self, about: str) -> AsyncIterator[Meter]:
        """Return every meter whose record mentions `about`."""
        async for value in self._copy.search(Kind.METER, about):
            yield mirrored_meter(value)

    async def complete(self) -> None:
        """Return when the copy is complete."""
        await self._complete.wait()

    async def run(self) -> NoReturn:
        """Read all of it, then follow every change, for ever."""
        prefix = self._keys.registry()
        while True:
            try:
                revision = await self._read(prefix)
                async for reply in self._client.watch(prefix, revision):
                    for event in reply.events:
                        self._copy.apply(self._keys, event.kv, gone=event.type == pb.Event.DELETE)
            except (EtcdUnreachable, Compacted):
                await asyncio.sleep(_RETRY_AFTER_S)

    async def _read(self, prefix: bytes) -> int:
        """Read everything into a new copy, and only then put it in the old one's place."""
        copy, revision = Copy(), 0
        async for page, revision in self._client.pages(prefix):  # noqa: B007  # the last one is what is returned
            for one in page:
                copy.apply(self._keys, one, gone=False)
        self._copy = copy
        # What was read lives as long as the node: the collector need not look at millions of records again.
        gc.collect()
        gc.freeze()
        self._complete.set()
        log.info("registry read", extra=copy.counts)
        return revision


if TYPE_CHECKING:
    _: type[Registry] = EtcdRegistry
    ___: type[RegistryBook] = EtcdRegistry
    __: type[Registry] = Copy
