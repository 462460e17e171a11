"""How this node stands to every head end: for its heartbeat, its metrics, and so for `utrn cluster status`."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NoReturn

from utrn.peer.v1 import peer_service_pb2 as peer

from cluster.membership.head_ends import EtcdHeadEnds
from core.delivery.worker import DeliveryWorker
from core.domain.errors import NotReady
from core.ports.clock import Clock
from core.ports.head_end import HeadEnd

_EVERY_S = 1.0
# What is owed may be much to look through.
_OWED_EVERY_S = 30.0


class HeadEndStates:
    """Looks once a second at the parts of a node that know something of head ends, and keeps what it saw.

    What it keeps may be read by any thread; looking is for the node's own.
    """

    def __init__(
        self, names: EtcdHeadEnds, head_ends: Mapping[str, HeadEnd], delivery: DeliveryWorker, clock: Clock
    ) -> None:
        self._names = names
        self._head_ends = head_ends
        self._delivery = delivery
        self._clock = clock
        self.latest: Sequence[peer.HeadEndBeat] = ()
        # How long what waits for no head end has been owed at most.
        self.longest_owed_s = 0.0

    async def run(self) -> NoReturn:
        """Follow the names in the ledger, and look, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._names.run())
            tasks.create_task(self._look_at_owed())
            while True:
                self.latest = self._look()
                await asyncio.sleep(_EVERY_S)

    async def _look_at_owed(self) -> NoReturn:
        while True:
            self.longest_owed_s = self._delivery.longest_owed_s()
            await asyncio.sleep(_OWED_EVERY_S)

    def _look(self) -> list[peer.HeadEndBeat]:
        """Return one state per head end that is configured here, that others have, or that something waits for."""
        parked, found = self._delivery.parked(), []
        for name in sorted({*self._head_ends, *self._names.missing, *parked}):
            head_end, waits = self._head_ends.get(name), parked.get(name)
            found.append(
                peer.HeadEndBeat(
                    name=name,
                    configured=head_end is not None,
                    available=head_end is not None and head_end.available,
                    parked=0 if waits is None else waits.count,
                    oldest_parked_ms=0 if waits is None else self._age_ms(waits.oldest),
                )
            )
        return found

    def _age_ms(self, since: datetime) -> int:
        """Return how long something has waited; 0 while this node does not know the cluster's time."""
        try:
            return max(0, round((self._clock.now() - since).total_seconds() * 1000))
        except NotReady:
            return 0
