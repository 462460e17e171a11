"""EtcdRegistry: a watched copy of participants, meters and PANs; RegistryWriter puts them there."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NoReturn, TypeVar

from etcdpb import rpc_pb2 as pb

from cluster import ops
from cluster.client import Compacted, EtcdClient, EtcdUnreachable
from cluster.config import EtcdConfig
from cluster.keys import Keys
from cluster.records import card_of, card_value, meter_of, meter_value, participant_of, participant_value
from core.domain.meter import Card, Meter, MeterId, Pan
from core.domain.party import Participant, ParticipantId, SupplierKey
from core.ports.registry import Registry

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_RETRY_AFTER_S = 0.1
_PUTS_PER_TXN = 100


class EtcdRegistry:
    """The registry, from memory."""

    def __init__(self, client: EtcdClient, config: EtcdConfig) -> None:
        self._client = client
        self._keys = Keys(config.prefix)
        self._participants: dict[str, Participant] = {}
        self._meters: dict[str, Meter] = {}
        self._cards: dict[str, Card] = {}
        self._callers: dict[str, Participant] = {}
        self._complete = asyncio.Event()

    @property
    def ready(self) -> bool:
        """True once the copy is complete."""
        return self._complete.is_set()

    def caller(self, identity: str) -> Participant | None:
        """Return the participant that uses the SAN URI `identity`."""
        return self._callers.get(identity)

    def participant(self, participant_id: ParticipantId) -> Participant | None:
        """Return a participant."""
        return self._participants.get(participant_id)

    def card(self, pan: Pan) -> Card | None:
        """Return what a PAN stands for."""
        return self._cards.get(pan)

    def meter(self, meter_id: MeterId) -> Meter | None:
        """Return a meter."""
        return self._meters.get(meter_id)

    def supplier_keys(self) -> list[SupplierKey]:
        """Return the prepayment key of every supplier."""
        return [one.supplier_key for one in self._participants.values() if one.supplier_key is not None]

    async def complete(self) -> None:
        """Return when the copy is complete."""
        await self._complete.wait()

    async def run(self) -> NoReturn:
        """Read all of it, then follow every change, for ever."""
        prefix = self._keys.registry()
        while True:
            try:
                found, revision = await self._client.list_prefix(prefix)
                self._take(found)
                async for reply in self._client.watch(prefix, revision):
                    for event in reply.events:
                        self._apply(event.kv, gone=event.type == pb.Event.DELETE)
            except (EtcdUnreachable, Compacted):
                await asyncio.sleep(_RETRY_AFTER_S)

    def _take(self, found: Sequence[pb.KeyValue]) -> None:
        for records in (self._participants, self._meters, self._cards, self._callers):
            records.clear()
        for one in found:
            self._apply(one, gone=False)
        self._complete.set()
        log.info(
            "registry read",
            extra={"participants": len(self._participants), "meters": len(self._meters), "pans": len(self._cards)},
        )

    def _apply(self, record: pb.KeyValue, *, gone: bool) -> None:
        kind, record_id = self._keys.parse_registry(record.key)
        if kind == "participant":
            self._apply_participant(record_id, None if gone else participant_of(record.value))
        elif kind == "meter":
            _set(self._meters, record_id, None if gone else meter_of(record.value))
        elif kind == "pan":
            _set(self._cards, record_id, None if gone else card_of(record.value))

    def _apply_participant(self, participant_id: str, participant: Participant | None) -> None:
        before = self._participants.get(participant_id)
        for identity in before.identities if before is not None else ():
            self._callers.pop(identity, None)
        _set(self._participants, participant_id, participant)
        if participant is not None:
            self._callers.update(dict.fromkeys(participant.identities, participant))


def _set(records: dict[str, _T], record_id: str, record: _T | None) -> None:
    if record is None:
        records.pop(record_id, None)
    else:
        records[record_id] = record


class RegistryWriter:
    """Loads records into etcd; each is written whole, and writing it again changes nothing."""

    def __init__(self, client: EtcdClient, config: EtcdConfig) -> None:
        self._client = client
        self._keys = Keys(config.prefix)

    async def load(
        self, records: Sequence[Participant | Meter | Card], *, progress: Callable[[int], None] = lambda _: None
    ) -> None:
        """Write `records`, participants before meters before PANs, and tell `progress` how many are written.

        Raises:
            EtcdUnreachable, EtcdUnknown, EtcdRefused: some may have been written; load again.
        """
        order = (Participant, Meter, Card)
        puts = [self._put(record) for kind in order for record in records if isinstance(record, kind)]
        for at in range(0, len(puts), _PUTS_PER_TXN):
            await self._client.txn(pb.TxnRequest(success=puts[at : at + _PUTS_PER_TXN]))
            progress(min(at + _PUTS_PER_TXN, len(puts)))

    async def known(self) -> tuple[list[Participant], set[MeterId]]:
        """Return the participants and the ids of the meters that are registered now.

        Raises:
            EtcdUnreachable: no member answered.
        """
        participants, _ = await self._client.list_prefix(self._keys.participant(""))
        meters, _ = await self._client.list_prefix(self._keys.meter(""))
        ids: Iterable[str] = (self._keys.parse_registry(one.key)[1] for one in meters)
        return [participant_of(one.value) for one in participants], {MeterId(one) for one in ids}

    def _put(self, record: Participant | Meter | Card) -> pb.RequestOp:
        match record:
            case Participant():
                return ops.put(self._keys.participant(record.participant_id), participant_value(record))
            case Meter():
                return ops.put(self._keys.meter(record.meter_id), meter_value(record))
            case Card():
                return ops.put(self._keys.pan(record.pan), card_value(record))


if TYPE_CHECKING:
    _: type[Registry] = EtcdRegistry
