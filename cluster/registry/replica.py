"""EtcdRegistryReplica: each node's copy of the registry, kept by one watch; a request is answered from memory."""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import TYPE_CHECKING, NoReturn

from etcdpb import rpc_pb2 as pb

from cluster.codec.meter import mirrored_card, mirrored_meter
from cluster.codec.set_aside import SetAsideRecords
from cluster.config import EtcdConfig
from cluster.etcd.client import EtcdClient
from cluster.etcd.informer import CopyState, Informer, Replica
from cluster.etcd.keys import Keys
from cluster.registry.snapshot import RegistrySnapshot
from core.domain.appointment import Appointments
from core.domain.effective_dated import Ms
from core.domain.grant import Grants
from core.domain.meter import Meter, MeterId, Model, Pan, PanRecord
from core.domain.participant import Participant, ParticipantId, ParticipantStatus, SupplierKey
from core.domain.record import Kind, Versioned
from core.ports.registry import Registry, RegistryBook

log = logging.getLogger(__name__)


class EtcdRegistryReplica:
    """The registry, from memory."""

    def __init__(self, client: EtcdClient, config: EtcdConfig, aside: SetAsideRecords | None = None) -> None:
        self._keys = Keys(config.prefix)
        self._aside = SetAsideRecords() if aside is None else aside
        self._copy = RegistrySnapshot(self._keys, self._aside)
        # The copy that is being read, before it takes the other's place.
        self._reading = self._copy
        self._complete = asyncio.Event()
        self._informer = Informer(
            client, self._keys.registry(), self, name="registry", compare_s=config.compare_registry_s
        )

    @property
    def ready(self) -> bool:
        """True once the copy is complete."""
        return self._complete.is_set()

    @property
    def state(self) -> CopyState:
        """How the copy is."""
        return self._informer.state

    @property
    def grants(self) -> Grants:
        """What was found of callers and suppliers lately."""
        return self._copy.grants

    def caller(self, identity: str) -> Participant | None:
        """Return the participant that uses the SAN URI `identity`."""
        return self._copy.caller(identity)

    def departed(self, identity: str) -> Participant | None:
        """Return the participant that used the SAN URI `identity` when it left, if nobody uses it now."""
        return self._copy.departed(identity)

    def participant(self, participant_id: ParticipantId) -> Versioned[Participant] | None:
        """Return a participant."""
        return self._copy.participant(participant_id)

    def card(self, pan: Pan) -> Versioned[PanRecord] | None:
        """Return a PAN."""
        return self._copy.card(pan)

    def meter(self, meter_id: MeterId) -> Versioned[Meter] | None:
        """Return a meter."""
        return self._copy.meter(meter_id)

    def appointments(self, supplier_id: ParticipantId, psp_id: ParticipantId) -> Versioned[Appointments] | None:
        """Return what a supplier has appointed a PSP to."""
        return self._copy.appointments(supplier_id, psp_id)

    def model(self, make: str, model: str) -> Versioned[Model] | None:
        """Return what the meters of a model can do."""
        return self._copy.model(make, model)

    def counts_aside(self) -> int:
        """Return how many records of the copy are set aside."""
        return self._copy.counts_aside()

    def due_by(self, now: Ms) -> list[tuple[Ms, MeterId]]:
        """Return the meters whose change is due, earliest first; some at a time."""
        return self._copy.due.due_by(now)

    def supplier_keys(self) -> dict[ParticipantId, SupplierKey]:
        """Return the prepayment key of every supplier that has not left."""
        return {
            participant.participant_id: participant.supplier_key
            for participant in self._copy.participants()
            if participant.supplier_key is not None and participant.status is not ParticipantStatus.LEFT
        }

    def pans_of(self, meter_id: MeterId) -> list[PanRecord]:
        """Return every PAN that stands, stood or will stand for a meter."""
        return self._copy.cards_of(meter_id)

    async def cards(self, about: str) -> AsyncIterator[PanRecord]:
        """Return every PAN whose record mentions `about`."""
        async for card in self._copy.search(Kind.PAN, about, mirrored_card):
            yield card

    async def meters(self, about: str) -> AsyncIterator[Meter]:
        """Return every meter whose record mentions `about`."""
        async for meter in self._copy.search(Kind.METER, about, mirrored_meter):
            yield meter

    async def complete(self) -> None:
        """Return when the copy is complete."""
        await self._complete.wait()

    async def run(self) -> NoReturn:
        """Read all of it, then follow every change, for ever."""
        await self._informer.run()

    def begin(self) -> None:
        """Read everything into a new copy."""
        self._reading = RegistrySnapshot(self._keys, self._aside)

    def listed(self, revision: int) -> None:
        """Put the new copy in the old one's place."""
        del revision
        self._copy = self._reading
        # What was read lives as long as the node: the collector need not look at millions of records again. It looks a
        # last time before the node serves, and never in a serving node, which would stand still meanwhile.
        if not self._complete.is_set():
            gc.collect()
        gc.freeze()
        self._complete.set()
        log.info("registry read", extra=self._copy.counts)

    def put(self, kv: pb.KeyValue) -> None:
        """Store a record's newest value."""
        self._reading.apply(kv, gone=False)

    def remove(self, key: bytes, revision: int) -> None:
        """Remove a record that was deleted."""
        self._reading.apply(pb.KeyValue(key=key, mod_revision=revision), gone=True)

    def parts(self) -> Sequence[bytes]:
        """Return the prefix of each kind of record."""
        return self._copy.parts()

    def names(self, part: bytes) -> Iterable[str]:
        """Return the ids of a kind."""
        return self._copy.names(part)

    def revision_of(self, part: bytes, name: str) -> int:
        """Return the revision of what is kept of a record; 0 if it is not there."""
        return self._reading.revision_of(part, name)


if TYPE_CHECKING:
    _: type[Registry] = EtcdRegistryReplica
    __: type[RegistryBook] = EtcdRegistryReplica
    ___: type[Replica] = EtcdRegistryReplica
