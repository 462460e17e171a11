"""TimeFence: brings the ledger's time up to an instant before a write that must not happen earlier.

The write itself compares the ledger's time too, so a node that is wrong about the time writes nothing early.
"""

from etcdpb import rpc_pb2 as pb

from cluster.etcd import ops, preconditions
from cluster.etcd.client import EtcdClient, EtcdRefused, EtcdUnknown, EtcdUnreachable
from cluster.etcd.keys import Keys
from cluster.timekeeping.ledger_time import ClusterClock
from core.domain.effective_dated import NEVER, Ms, ms_of
from core.domain.errors import LedgerUnavailable, NotReady
from core.ports.clock import Clock

_RACES_MAX = 10


class TimeFence:
    """Knows how far the ledger's time has come, and advances it to this node's when a write needs that."""

    def __init__(self, client: EtcdClient, keys: Keys, clock: Clock) -> None:
        """Take the etcd client, and the clock of cluster time."""
        self._client = client
        self._keys = keys
        self._clock = clock
        self._reached = NEVER

    async def reach(self, at: Ms) -> None:
        """Return once the ledger's time has come to `at`.

        Raises:
            NotReady: `at` has not come yet, by what this node makes of cluster time; nothing was written.
            LedgerUnavailable: repeat.
        """
        for _ in range(_RACES_MAX):
            if self._reached >= at:
                return
            instant, revision = await self._read()
            if instant < at:
                await self._advance(at, instant, revision)
        raise LedgerUnavailable("others keep setting the ledger's time; nothing was written")

    async def _read(self) -> tuple[Ms, int]:
        try:
            reply = await self._client.range(pb.RangeRequest(key=self._keys.time_now()))
        except EtcdUnreachable as error:
            raise LedgerUnavailable("the ledger cannot be reached; nothing was written") from error
        told = preconditions.time_of(reply.kvs[0].value) if reply.kvs else NEVER
        if told is None:
            raise LedgerUnavailable("the ledger's time cannot be understood; nothing was written; tell the operator")
        # As of now, not of when it was asked for: it may have been written while the question was on its way.
        at = self._clock.monotonic()
        instant, revision = Ms(told), reply.kvs[0].mod_revision if reply.kvs else 0
        self._reached = instant
        if isinstance(self._clock, ClusterClock):
            self._clock.hear(instant, revision, at)
        return instant, revision

    def _now(self) -> Ms | None:
        """Return the instant that this node may write now; None if a peer must be asked before.

        The ledger's instant is advanced every second. After a silence its carrier asks the others first (LedgerTime).

        Raises:
            NotReady: this node does not know cluster time.
        """
        now = ms_of(self._clock.now())
        return self._clock.writable() if isinstance(self._clock, ClusterClock) else now

    async def _advance(self, at: Ms, instant: Ms, revision: int) -> None:
        """Set the ledger's time to this node's, if it stands where it was read."""
        now = self._now()
        if now is None:
            raise NotReady("nobody has advanced the ledger's time for a while; nothing was written")
        if now < at:
            raise NotReady(f"the ledger's time is {at - max(now, instant)} ms before that instant; nothing was written")
        key = self._keys.time_now()
        txn = pb.TxnRequest(
            compare=preconditions.time_unmoved(key, revision, now),
            success=[ops.put(key, preconditions.time_value(now))],
        )
        try:
            await self._client.txn(txn)
        except (EtcdUnreachable, EtcdRefused) as error:
            raise LedgerUnavailable("the ledger takes no writes now; nothing was written") from error
        except EtcdUnknown:
            # Read again: whoever set it, it only rises.
            return
