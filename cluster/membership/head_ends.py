"""EtcdHeadEnds: the names of head ends, kept in the ledger: each node announces those it is configured with.

A name stays until an operator takes it away. So a node, or all of them, that has lost one from its configuration says
so, instead of letting deliveries wait in silence; and what one node registers a meter under, every node knows.
"""

import asyncio
import logging
from collections.abc import Collection
from typing import TYPE_CHECKING, NoReturn

from etcdpb import rpc_pb2 as pb
from google.protobuf import timestamp_pb2
from utrn.store.v1 import records_pb2 as store

from cluster.codec.vend import SCHEMA
from cluster.config import EtcdConfig
from cluster.etcd import ops, preconditions
from cluster.etcd.client import EtcdClient, EtcdRefused, EtcdUnknown, EtcdUnreachable
from cluster.etcd.keys import Keys
from cluster.etcd.prefix_mirror import PrefixMirror
from core.ports.clock import Clock
from core.ports.head_ends import HeadEndNames

log = logging.getLogger(__name__)

_AGAIN_AFTER_S = 1.0


class EtcdHeadEnds:
    """The names in the ledger, and this node's own."""

    def __init__(
        self, client: EtcdClient, config: EtcdConfig, clock: Clock, *, node_id: str, own: Collection[str]
    ) -> None:
        self._client = client
        self._clock = clock
        self._node_id = node_id
        self._keys = Keys(config.prefix)
        self._own = frozenset(own)
        self._mirror = PrefixMirror(
            client, self._keys.head_ends(), self._say_missing, compare_s=config.compare_members_s
        )
        self._said: frozenset[str] = frozenset()

    def __call__(self) -> frozenset[str] | None:
        """Return every name there is; None until the ledger has been read."""
        return self._own.union(self._mirror.keys) if self._mirror.ready else None

    @property
    def missing(self) -> frozenset[str]:
        """Names that the ledger has and this node's configuration has not: deliveries for them wait at this node."""
        return frozenset(self._mirror.keys) - self._own

    async def run(self) -> NoReturn:
        """Follow the ledger, and announce this node's own names whenever one is not there."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._mirror.run())
            while True:
                if self._mirror.ready:
                    for name in sorted(self._own - self._mirror.keys.keys()):
                        await self._announce(name)
                await asyncio.sleep(_AGAIN_AFTER_S)

    async def _announce(self, name: str) -> None:
        since = timestamp_pb2.Timestamp()
        since.FromDatetime(self._clock.now())
        record = store.HeadEndRecord(schema=SCHEMA, name=name, node_id=self._node_id, since=since)
        key = self._keys.head_end(name)
        txn = pb.TxnRequest(
            compare=preconditions.absent(key), success=[ops.put(key, record.SerializeToString(deterministic=True))]
        )
        try:
            await self._client.txn(txn)
        except (EtcdUnreachable, EtcdUnknown, EtcdRefused) as error:
            # Looked at again in a moment: what was written is in the mirror then.
            log.info("a head end's name was not announced", extra={"head_end": name, "error": str(error)})

    def _say_missing(self) -> None:
        if self.missing != self._said:
            self._said = self.missing
            if self._said:
                log.error(
                    "this node is not configured with head ends that there are: deliveries for them wait while it owns "
                    "their shards",
                    extra={"head_ends": ", ".join(sorted(self._said))},
                )


async def head_end_names(client: EtcdClient, config: EtcdConfig) -> frozenset[str]:
    """Return the names in the ledger, once.

    Raises:
        EtcdUnreachable: repeat.
    """
    prefix = Keys(config.prefix).head_ends()
    found, _ = await client.list_prefix(prefix)
    return frozenset(one.key[len(prefix) :].decode() for one in found)


if TYPE_CHECKING:
    _: type[HeadEndNames] = EtcdHeadEnds
