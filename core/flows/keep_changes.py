"""ChangeKeeper: carries out, at their instants, the changes of meters that were recorded for later."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from core.domain.errors import Busy, RegistryMoved, Unknown
from core.domain.meter import MeterId
from core.domain.timeline import Ms, ms_of
from core.flows.turn import TurnMeter
from core.ports.clock import Clock
from core.ports.random import Random

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeKeeper:
    """Looks for what is due. Every node does; carrying out what another has carried out changes nothing.

    `due_by` returns the reminders up to an instant.
    """

    due_by: Callable[[Ms], list[tuple[Ms, MeterId]]]
    turn: TurnMeter
    clock: Clock
    random: Random

    async def run(self) -> NoReturn:
        """Carry changes out, for ever."""
        while True:
            # Not all nodes at the same moment: the first one saves the others the work.
            await asyncio.sleep(self.random.uniform(_LOOK_EVERY_S / 2, _LOOK_EVERY_S * 1.5))
            try:
                for at, meter_id in self.due_by(ms_of(self.clock.now())):
                    await self._carry_out(at, meter_id)
            except (Busy, Unknown, RegistryMoved) as error:
                log.warning("a change is due and cannot be carried out yet", extra={"error": error.message})

    async def _carry_out(self, at: Ms, meter_id: MeterId) -> None:
        change = await self.turn(meter_id)
        if change is None:
            # Another node was faster, and its reminder is about to go; or it was left behind.
            await self.turn.forget(at, meter_id)
            return
        log.info(
            "a meter changed",
            extra={
                "meter_id": meter_id,
                "changes": [kind.name for kind in change.kinds],
                "responsible": change.responsible,
                "in_flight": len(change.in_flight),
                "unspent": change.unspent,
            },
        )
