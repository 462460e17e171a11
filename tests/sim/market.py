"""What suppliers and operators do while sales go on: each through the flows of some node, as a command would."""

import asyncio
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from cluster.codec.registry import record_of
from cluster.etcd.keys import Keys
from core.domain.effective_dated import Ms, ms_of
from core.domain.errors import UtrnError
from core.domain.meter import Meter, MeterId, PanForm
from core.domain.participant import ParticipantId, ParticipantStatus, Profile, SellingModel
from core.domain.record import Kind
from tests.sim.clock import now_s
from tests.sim.town import HARBOUR, OPERATOR, SOUTH, SUPPLIERS, principal
from tests.support.vends import NOW, SUPPLIER_ID

if TYPE_CHECKING:
    from tests.sim.world import SimNode, Simulation

_TRIES = 4
_PATIENCE_S = 2.0


class MarketActs:
    """Changes of the registry, drawn from the seed."""

    def __init__(self, sim: "Simulation") -> None:
        self._sim = sim
        self._chance = sim.chance

    async def change_supplier(self) -> None:
        """Change of Supplier, now or due later; the gaining supplier gives a new card for it."""
        meter_id, at = self._meter(), self._at()
        losing = self._supplier_of(meter_id)
        gaining = next(supplier.participant_id for supplier in SUPPLIERS if supplier.participant_id != losing)
        operator = principal(OPERATOR.participant_id)
        done = await self._do(lambda node: node.meters.change_supplier(operator, meter_id, losing, gaining, at))
        if done:
            await self._give_card(meter_id, at)

    async def change_tenant(self) -> None:
        """Change of Tenancy, now or due later, and the new tenant's card."""
        meter_id, at = self._meter(), self._at()
        supplier_id, tenancy = self._supplier_of(meter_id), self._tenancy_of(meter_id)
        who = principal(supplier_id)
        if await self._do(lambda node: node.meters.change_tenant(who, meter_id, at, tenancy)):
            await self._give_card(meter_id, at)

    async def block_card(self) -> None:
        """Block a card for a while."""
        meter_id = self._meter()
        pan = self._sim.town.cards[meter_id][-1]
        who = principal(OPERATOR.participant_id)
        if await self._do(lambda node: node.pans.block(who, pan, blocked=True)):
            await asyncio.sleep(self._chance.uniform(0.2, 2.0))
            await self._do(lambda node: node.pans.block(who, pan, blocked=False))

    async def suspend_appointment(self) -> None:
        """Suspend what Harbour may do for a supplier for a while."""
        supplier_id = self._chance.choice(SUPPLIERS).participant_id
        who, psp_id = principal(supplier_id), HARBOUR.participant_id

        async def suspend(*, suspended: bool) -> None:
            which = who, supplier_id, psp_id, str(psp_id)
            await self._do(lambda node: node.appoint.suspend(*which, suspended=suspended))

        await suspend(suspended=True)
        await asyncio.sleep(self._chance.uniform(0.2, 2.0))
        await suspend(suspended=False)

    async def end_appointment(self) -> None:
        """End what Harbour may do for South, for good."""
        who, psp_id = principal(HARBOUR.participant_id), HARBOUR.participant_id
        await self._do(lambda node: node.appoint.end(who, SOUTH.participant_id, psp_id, str(psp_id)))

    async def suspend_participant(self) -> None:
        """Suspend a seller or a supplier for a while."""
        whom = self._chance.choice((HARBOUR.participant_id, SOUTH.participant_id))
        who = principal(OPERATOR.participant_id)
        await self._do(lambda node: node.parties.set_status(who, whom, ParticipantStatus.SUSPENDED))
        await asyncio.sleep(self._chance.uniform(0.2, 2.0))
        await self._do(lambda node: node.parties.set_status(who, whom, ParticipantStatus.ACTIVE))

    async def change_profile(self) -> None:
        """Let no PSP sell for South for a while."""
        who, at = principal(SOUTH.participant_id), self._at()

        async def choose(selling_model: SellingModel, at: Ms | None) -> None:
            profile = Profile(selling_model=selling_model)
            await self._do(lambda node: node.parties.set_profile(who, who.participant_id, profile, at))

        await choose(SellingModel.SUPPLIER_ONLY, at)
        await asyncio.sleep(self._chance.uniform(0.2, 2.0))
        await choose(SellingModel.PSP_ISSUES_AND_DELIVERS, None)

    async def take_away(self) -> None:
        """Take a meter out of service for good, if enough others are left."""
        town = self._sim.town
        if len(town.meter_ids) < 4 or self._chance.random() < 0.7:
            return
        meter_id, at = self._meter(), self._at()
        await self._do(lambda node: node.meters.end(principal(self._supplier_of(meter_id)), meter_id, at))

    async def _give_card(self, meter_id: MeterId, at: Ms | None) -> None:
        pan = self._sim.town.new_pan(meter_id)
        who = principal(OPERATOR.participant_id)
        if await self._do(lambda node: node.pans.give(who, pan, PanForm.APP, meter_id, at)):
            self._sim.town.cards[meter_id].append(pan)

    async def _do(self, act: Callable[["SimNode"], Coroutine[Any, Any, object]]) -> bool:
        """Have it done by one node or another; return whether one said that it is."""
        for _ in range(_TRIES):
            node = self._sim.any_node()
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    await node.serve(act(node))
            except (UtrnError, TimeoutError):
                await asyncio.sleep(0.1)
            else:
                return True
        return False

    def _meter(self) -> MeterId:
        return self._chance.choice(self._sim.town.meter_ids)

    def _at(self) -> Ms | None:
        """Return when a change is due: half of them at once."""
        if self._chance.random() < 0.5:
            return None
        return ms_of(NOW + timedelta(seconds=now_s() + self._chance.uniform(0.3, 4.0)))

    def _record(self, meter_id: MeterId) -> Meter:
        kv = self._sim.etcd.keys[Keys(self._sim.prefix).record(Kind.METER, meter_id)]
        record = record_of(Kind.METER, kv.value)
        assert isinstance(record, Meter)
        return record

    def _supplier_of(self, meter_id: MeterId) -> ParticipantId:
        last = self._record(meter_id).registrations.last
        return SUPPLIER_ID if last is None else last.value.supplier_id

    def _tenancy_of(self, meter_id: MeterId) -> int:
        last = self._record(meter_id).settings.last
        return 1 if last is None else last.value.tenancy
