"""LedgerWatch: every change of the ledger while something is tried out, and who owned what when."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

from cluster.audit.change_feed import LedgerEvent, OwnerGone, OwnerSeen, VendKey, VendSeen, follow
from cluster.audit.ledger_scan import all_owners, all_records
from cluster.config import EtcdConfig
from cluster.etcd.client import Compacted, EtcdClient
from core.domain.delivery import DeliveryState
from core.domain.vend import Vend

_SETTLE_S = 20.0
_LOOK_AGAIN_S = 0.1


class LedgerWatch:
    """Remembers every change of the ledger, and who owns what now."""

    def __init__(self, config: EtcdConfig) -> None:
        self._config = config
        self.events: list[LedgerEvent] = []
        self.owners: dict[int, tuple[str, int]] = {}
        self.owed = 0
        self.vends: dict[VendKey, Vend] = {}
        self.started = asyncio.Event()
        self.moved = asyncio.Event()

    async def run(self) -> None:
        """Follow for ever."""
        client = EtcdClient(self._config)
        try:
            async for changes in follow(client, self._config):
                self.started.set()
                now = time.monotonic()
                for event in changes:
                    self._take(LedgerEvent(event.revision, event.change, now))
                self.moved.set()
        except Compacted as error:
            raise RuntimeError("the ledger was compacted under the watch: the run cannot be checked") from error
        finally:
            await client.close()

    async def begin_settled(self, nodes: int) -> None:
        """Return when every shard has an owner and so many nodes own some; what is heard counts from then on.

        Raises:
            RuntimeError: they did not share them out in time.
        """
        await self.started.wait()
        client = EtcdClient(self._config)
        try:
            deadline = time.monotonic() + _SETTLE_S
            while time.monotonic() < deadline:
                # The watch hears only what happens from now on, so what is there already is read.
                owners, revision = await all_owners(client, self._config)
                if len(owners) == self._config.shards and len({owner.node_id for owner in owners}) == nodes:
                    self._begin(owners, await all_records(client, self._config), revision)
                    return
                await asyncio.sleep(_LOOK_AGAIN_S)
        finally:
            await client.close()
        raise RuntimeError("the nodes did not share the shards out")

    def _begin(self, owners: Sequence[OwnerSeen], records: Sequence[LedgerEvent], revision: int) -> None:
        later = [event for event in self.events if event.revision > revision]
        self.events, self.owners, self.owed, self.vends = [], {}, 0, {}
        now = time.monotonic()
        before = [record for record in records if record.revision <= revision]
        before += [LedgerEvent(owner.epoch, owner, now) for owner in owners]
        for event in (*sorted(before, key=lambda one: one.revision), *later):
            self._take(event)

    async def until(self, holds: Any, timeout_s: float) -> bool:
        """Return True as soon as `holds()` is true, False after `timeout_s`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not holds():
                    self.moved.clear()
                    await self.moved.wait()
                return True
        return bool(holds())

    def shards_of(self, node: str) -> set[int]:
        """Return the shards that a node owns now."""
        return {shard for shard, (owner, _) in self.owners.items() if owner == node}

    def busiest(self) -> str:
        """Return the node that owns the most shards."""
        return Counter(owner for owner, _ in self.owners.values()).most_common(1)[0][0]

    def _take(self, event: LedgerEvent) -> None:
        self.events.append(event)
        match event.change:
            case OwnerSeen(shard=shard, node_id=node, epoch=epoch):
                self.owners[shard] = (node, epoch)
            case OwnerGone(shard=shard):
                self.owners.pop(shard, None)
            case VendSeen(vend=vend, key=key):
                before = self.vends.get(key)
                self.owed += vend.delivery.owed - (before is not None and before.delivery.owed)
                self.vends[key] = vend
            case _:
                pass


def applied_times(events: Sequence[LedgerEvent], shards: set[int], shard_of: Any) -> list[float]:
    """Return when deliveries of `shards` were heard to be closed as applied, in order."""
    return [
        event.heard_at
        for event in events
        if isinstance(event.change, VendSeen)
        and event.change.vend.delivery.state is DeliveryState.APPLIED
        and shard_of(event.change.vend.meter_id) in shards
    ]


def longest_gap_ms(times: Sequence[float], *, since: float, until: float) -> float:
    """Return the longest stretch without any of `times` between `since` and `until`, in milliseconds."""
    inside = [since, *(one for one in sorted(times) if since < one < until), until]
    return max((after - before) * 1000 for before, after in pairwise(inside))
