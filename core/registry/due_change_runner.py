"""DueChangeRunner: carries out, at their instants, the changes of meters that were recorded for later."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from core.domain.effective_dated import Ms, ms_of
from core.domain.errors import Retryable, Unknown
from core.domain.meter import MeterId
from core.ports.clock import Clock
from core.ports.random import Random
from core.registry.due_changes import ApplyDueChange

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.25
_AT_ONCE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class DueChangeRunner:
    """Looks for what is due. Every node does; carrying out what another has carried out changes nothing.

    `due_by` returns the reminders up to an instant.
    """

    due_by: Callable[[Ms], list[tuple[Ms, MeterId]]]
    turn: ApplyDueChange
    clock: Clock
    random: Random

    async def run(self) -> NoReturn:
        """Carry changes out, for ever."""
        while True:
            # Not all nodes at the same moment: the first one saves the others the work.
            await asyncio.sleep(self.random.uniform(_LOOK_EVERY_S / 2, _LOOK_EVERY_S * 1.5))
            try:
                due = self.due_by(ms_of(self.clock.now()))
            except Retryable:
                # This node's clock cannot be relied on; others carry the change out.
                continue
            # Where many are due, each node begins somewhere else.
            begin = int(self.random.uniform(0, len(due)))
            in_turn = [*due[begin:], *due[:begin]]
            for first in range(0, len(in_turn), _AT_ONCE):
                async with asyncio.TaskGroup() as tasks:
                    some = in_turn[first : first + _AT_ONCE]
                    done = [tasks.create_task(self._carry_out(at, meter_id)) for at, meter_id in some]
                if not all(task.result() for task in done):
                    break

    async def _carry_out(self, at: Ms, meter_id: MeterId) -> bool:
        """Carry one meter's change out; return False if that cannot be done now."""
        try:
            change = await self.turn(meter_id)
            if change is None:
                # Another node was faster, and its reminder is about to go; or it was left behind.
                await self.turn.forget(at, meter_id)
                return True
        except (Retryable, Unknown) as error:
            log.warning(
                "a change is due and cannot be carried out yet", extra={"meter_id": meter_id, "error": error.message}
            )
            return False
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
        return True
