"""EtcdCeilings: deals a seller's hourly ceiling out to the nodes, each time by compare-and-swap of one key.

One key for each seller, for its latest hour: it never goes back to an hour before, and nothing has to be cleared away.
"""

from typing import TYPE_CHECKING

from etcdpb import rpc_pb2 as pb
from utrn.store.v1 import records_pb2 as store

from cluster.codec.participant import participant_of
from cluster.codec.vend import GARBLED, SCHEMA, read
from cluster.config import EtcdConfig
from cluster.etcd import ops, preconditions
from cluster.etcd.client import EtcdClient, EtcdUnreachable
from cluster.etcd.commit import commit_or_raise, not_read
from cluster.etcd.keys import Keys
from cluster.timekeeping.fence import TimeFence
from core.domain.ceiling import deal
from core.domain.effective_dated import Ms
from core.domain.errors import LedgerUnavailable, NotReady, OutcomeUnknown
from core.domain.participant import ParticipantId
from core.domain.record import Kind
from core.ports.ceilings import Allotment, CeilingLedger
from core.ports.clock import Clock

_RACES_MAX = 20


class EtcdCeilings:
    """The ceilings in etcd."""

    def __init__(
        self, client: EtcdClient, config: EtcdConfig, clock: Clock, *, default_pence: int, node_id: str = ""
    ) -> None:
        """Take what to write to, and the ceiling of a seller that has none of its own."""
        self._client = client
        self._keys = Keys(config.prefix)
        self._clock = clock
        self._resolve_s = config.resolve_timeout_ms / 1000
        self._fence = TimeFence(client, self._keys, clock)
        self._default = default_pence
        self._node_id = node_id
        self._draws = 0

    async def draw(self, participant_id: ParticipantId, hour: Ms, *, held: int, wanted: int) -> Allotment:
        """Give `held` back, and return what may be sold instead."""
        # No node begins an hour that the ledger's time has not come to: the others' key would be ahead of their time.
        await self._fence.reach(hour)
        for _ in range(_RACES_MAX):
            found = await self._draw_once(participant_id, hour, held=held, wanted=wanted)
            if found is not None:
                return found
        raise LedgerUnavailable("other nodes keep drawing from this seller's ceiling; repeat the same transaction_id")

    async def _draw_once(self, participant_id: ParticipantId, hour: Ms, *, held: int, wanted: int) -> Allotment | None:
        """Return the allotment; None if somebody else was first."""
        key, seller_key = self._keys.ceiling(participant_id), self._keys.record(Kind.PARTICIPANT, participant_id)
        there, seller = await self._get(key, seller_key)
        ceiling = self._ceiling_of(seller)
        at_hour, drawn = _drawn(there)
        if at_hour > hour:
            # Another node has begun it, at the ledger's time; what is held of the hour before is worth nothing now.
            hour, held = at_hour, 0
        others = max(0, drawn - held) if at_hour == hour else 0
        pence = deal(ceiling=ceiling, drawn=others, wanted=wanted)
        after = others + pence
        allotment = Allotment(
            hour=hour, pence=pence, drawn_pence=after, ceiling_pence=ceiling, revision=_revision(seller)
        )
        if at_hour == hour and after == drawn:
            return allotment
        self._draws += 1
        record = store.CeilingRecord(
            schema=SCHEMA, hour=hour, drawn_pence=after, node_id=self._node_id, draw=self._draws
        )
        wanted_value = record.SerializeToString(deterministic=True)
        txn = pb.TxnRequest(
            compare=preconditions.ceiling_unmoved(key, _revision(there))
            + preconditions.authorizing_record_unmoved(seller_key, allotment.revision),
            success=[ops.put(key, wanted_value)],
            failure=[ops.get(key)],
        )
        settled = await commit_or_raise(self._client, self._clock, txn, resolve_s=self._resolve_s)
        if settled.reply.succeeded:
            return allotment
        (now,) = ops.got(settled.reply)
        if not settled.resent or _revision(now) == _revision(there):
            return None
        if now is not None and now.value == wanted_value:
            # An earlier sending was carried out, and its answer was lost.
            return allotment
        # Carried out or not, another node has drawn since. Giving `held` back once more could give it back twice.
        raise OutcomeUnknown("whether this was drawn from the seller's ceiling is not known; it is left unsold")

    async def _get(self, *keys: bytes) -> list[pb.KeyValue | None]:
        try:
            return ops.got(await self._client.read(pb.TxnRequest(success=[ops.get(key) for key in keys])))
        except EtcdUnreachable as error:
            raise not_read(error) from error

    def _ceiling_of(self, seller: pb.KeyValue | None) -> int:
        if seller is None:
            return self._default
        try:
            return participant_of(seller.value).ceiling_pence or self._default
        except GARBLED as error:
            raise NotReady("the seller's record cannot be understood by this node; ask another") from error


def _revision(there: pb.KeyValue | None) -> int:
    return 0 if there is None else there.mod_revision


def _drawn(there: pb.KeyValue | None) -> tuple[Ms, int]:
    """Return the hour that was last drawn from, and how much of it was."""
    if there is None:
        return Ms(0), 0
    try:
        record = read(store.CeilingRecord(), there.value)
    except GARBLED as error:
        raise NotReady("what is drawn of this seller's ceiling cannot be understood; ask another node") from error
    return Ms(record.hour), record.drawn_pence


if TYPE_CHECKING:
    _: type[CeilingLedger] = EtcdCeilings
