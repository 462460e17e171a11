"""Callers of the simulation: tills that ask again, twins, bugs that reuse an id, two steps, codes made elsewhere."""

import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from core.domain.errors import FENCED, IF_FIRST, Refused, TransactionIdReused, UtrnError
from core.domain.meter import MeterId
from core.domain.money import Pence
from core.domain.participant import ParticipantId
from core.domain.transaction_id import TransactionId, make_transaction_id
from core.domain.utrn import Counter
from core.domain.vend import Channel, Operation, Sale, Vend
from core.issuing.recent_vends import Issued
from tests.sim.clock import now_s
from tests.sim.meters import code_of
from tests.sim.town import CORNER, HARBOUR, NORTH, SOUTH, WEST, principal
from tests.support.vends import NOW

if TYPE_CHECKING:
    from tests.sim.world import SimNode, Simulation

ATTEMPT_S = 1.5
_ATTEMPTS_MAX = 30
# When nothing is broken, a sale has its answer within this time, wherever it was asked for.
_SOON_S = 10.0
# More than a meter remembers.
_NEWER = 105
_CREDITED_WITHIN_S = 8.0
_OPERATIONS = (Operation.TOP_UP, Operation.TOP_UP, Operation.ISSUE)
# Corner sells most; suppliers sell too.
_SELLERS = (CORNER, CORNER, CORNER, CORNER, HARBOUR, HARBOUR, NORTH, SOUTH)


def content_of(sale: Sale) -> str:
    """Return what else must be the same for two sales to be one, besides the amount."""
    return f"{sale.pan}/{sale.operation.name}"


class Tills:
    """Everybody who sells."""

    def __init__(self, sim: "Simulation", *, sell_s: float) -> None:
        self._sim = sim
        self._chance = sim.chance
        self._sell_s = sell_s
        self._sold: list[Sale] = []
        # What consumers have on their receipts.
        self._told: list[Vend] = []
        self._externally_issued = 0
        self.ages: dict[str, float] = {}

    async def run(self, number: int) -> None:
        """Sell for a while, as one till."""
        async with asyncio.TaskGroup() as later:
            while now_s() < self._sell_s:
                await asyncio.sleep(self._chance.expovariate(2.0))
                sale = self._next_sale()
                if self._chance.random() < 0.2:
                    async with asyncio.TaskGroup() as twins:
                        twins.create_task(self.ask(f"till-{number}", sale))
                        twins.create_task(self.ask(f"twin-{number}", self._twin_of(sale)))
                    continue
                issued = await self.ask(f"till-{number}", sale)
                if issued is not None and sale.operation is Operation.ISSUE and self._chance.random() < 0.7:
                    later.create_task(self._send_later(sale, self._chance.uniform(0.0, 5.0)))

    async def run_busy(self) -> None:
        """Sell so much for one meter that a code issued before, and sent last, is behind all that it remembers."""
        meter_id = self._chance.choice(self._sim.town.meter_ids)
        pan = self._sim.town.cards[meter_id][-1]

        def sale(operation: Operation) -> Sale:
            new = self._sale()
            return replace(new, pan=pan, operation=operation, participant_id=CORNER.participant_id,
                           transaction_id=self._new_id(old=False))  # fmt: skip

        first = sale(Operation.ISSUE)
        if await self.ask("busy", first) is None:
            return
        before = len(self._sim.meters.credits)
        async with asyncio.TaskGroup() as sales:
            for number in range(_NEWER):
                sales.create_task(self.ask(f"busy-{number}", sale(Operation.TOP_UP)))
        until = now_s() + _CREDITED_WITHIN_S
        while now_s() < until and len(self._sim.meters.credits) < before + _NEWER:  # noqa: ASYNC110  # virtual time
            await asyncio.sleep(0.1)
        await self.send(first.participant_id, first.transaction_id)

    def key_in(self) -> None:
        """Enter a code by hand, whatever became of its delivery."""
        if self._told:
            vend = self._chance.choice(self._told)
            self._sim.wan.enter_by_hand(vend.originator_id, vend.meter_id, vend.utrn)

    def key_in_what_is_left(self) -> None:
        """Enter by hand many of the codes that have not come to an end at their meters, when all is healed."""
        credited = {credit.utrn for credit in self._sim.meters.credits}
        for vend in self._told:
            if vend.utrn not in credited and self._chance.random() < 0.7:
                self._sim.wan.enter_by_hand(vend.originator_id, vend.meter_id, vend.utrn)

    async def run_foreign(self) -> None:
        """Have codes made elsewhere delivered, for the meter whose supplier makes them itself."""
        while now_s() < self._sell_s:
            await asyncio.sleep(self._chance.expovariate(1.0))
            await self.ask("west", self._foreign_sale())

    async def sell_everywhere(self) -> list[str]:
        """Sell twice at once at every node for each meter, when all is healed; return where there is no answer in time.

        Each is asked for at its node alone: what is stuck there must not be hidden by what the others can do.
        """

        async def sell(node: str, meter_id: MeterId) -> bool:
            sale = replace(self._sale(), pan=self._sim.town.cards[meter_id][-1], transaction_id=self._new_id(old=False))
            before = len(self._sim.history.calls)
            async with asyncio.timeout(_SOON_S):
                await self.ask("after", sale, attempts=_ATTEMPTS_MAX, at=node)
            mine = [call for call in self._sim.history.calls[before:] if call.transaction_id == sale.transaction_id]
            return any(one.outcome != "unknown" for one in mine)

        async with asyncio.TaskGroup() as sales:
            asked = [
                (f"{node}, meter {meter_id}", sales.create_task(_in_time(sell(node, meter_id))))
                for node in self._sim.nodes
                for meter_id in self._sim.town.meter_ids[:2]
                for _ in range(2)
            ]
        return [where for where, task in asked if not task.result()]

    def _next_sale(self) -> Sale:
        if not self._sold or self._chance.random() >= 0.1:
            sale = self._sale()
            self._sold.append(sale)
            return sale
        # A till that restarts, or a bug: an id that is in use, sometimes with another amount.
        earlier = self._chance.choice(self._sold)
        return replace(earlier, amount=Pence(earlier.amount + self._chance.choice((0, 0, 100))))

    def _twin_of(self, sale: Sale) -> Sale:
        """Return the same sale asked for at the same moment; now and then one of another seller under the same id."""
        if self._chance.random() < 0.85:
            return sale
        other = NORTH if sale.participant_id == CORNER.participant_id else CORNER
        return replace(sale, participant_id=other.participant_id)

    def _new_id(self, *, old: bool = True) -> TransactionId:
        # Now and then an id that was made too long ago: it must never be executed, whatever the ledger still knows.
        too_old = old and self._chance.random() < 0.05
        age_s = self._sim.flow.hot_window.total_seconds() + 600 if too_old else 0.0
        made_ms = int((NOW.timestamp() + now_s() - age_s) * 1000)
        transaction_id = make_transaction_id(made_ms, self._chance.getrandbits(74))
        if age_s:
            self.ages[transaction_id] = age_s
        return transaction_id

    def _sale(self) -> Sale:
        return Sale(
            participant_id=self._chance.choice(_SELLERS).participant_id,
            transaction_id=self._new_id(),
            operation=self._chance.choice(_OPERATIONS),
            pan=self._sim.town.pan(),
            amount=Pence(self._chance.randint(1, 80) * 100),
            channel=Channel.APP,
        )

    def _foreign_sale(self) -> Sale:
        meter_id = self._sim.town.foreign
        assert meter_id is not None
        assert WEST.supplier_key is not None
        self._externally_issued += 1
        pence, told = self._chance.randint(1, 80) * 100, self._externally_issued
        code = code_of(WEST.supplier_key.originator_id, meter_id, told, pence)
        if self._sim.switches.foreign_wrong and self._chance.random() < 0.1:
            # The ten bits in the code are right, and the rest of what its supplier says of it is not.
            told += 1024
        return Sale(
            participant_id=WEST.participant_id,
            transaction_id=self._new_id(),
            operation=Operation.EXTERNALLY_ISSUED,
            pan=self._sim.town.cards[meter_id][0],
            amount=Pence(pence),
            channel=Channel.APP,
            code=(code, Counter(told)),
        )

    async def ask(self, caller: str, sale: Sale, *, attempts: int | None = None, at: str = "") -> Issued | None:
        """Ask for a sale's code at one node after the other until there is a final answer, or patience ends.

        Args:
            caller: Who asks.
            sale: For what.
            attempts: How often at most; drawn if None.
            at: The one node to ask; whichever if empty.
        """
        key, history = (str(sale.participant_id), str(sale.transaction_id)), self._sim.history
        for attempt in range(attempts or self._chance.randint(1, _ATTEMPTS_MAX)):
            node = self._sim.nodes[at] if at else self._sim.any_node()
            call = history.begin(caller, key, content_of(sale), sale.amount, repeat=attempt > 0, at=now_s())
            try:
                async with asyncio.timeout(ATTEMPT_S):
                    issued: Issued = await self._at(node, sale, repeat=call.repeat)
            except Refused as refused:
                history.refused(call, refused.reason, final=refused.final, at=now_s())
                if refused.final == FENCED or (refused.final == IF_FIRST and not call.repeat):
                    return None
                if isinstance(refused, TransactionIdReused):
                    return None
            except UtrnError as error:
                history.unknown(call, error.reason, at=now_s())
            except TimeoutError:
                history.unknown(call, "DEADLINE_EXCEEDED", at=now_s())
            else:
                vend = issued.stored.vend
                content = f"{vend.utrn} {vend.sale.amount} {vend.issued_at.isoformat()}".encode()
                self._told.append(vend)
                history.answered(call, utrn=vend.utrn, content=content, replayed=issued.replayed, at=now_s())
                return issued
            await asyncio.sleep(self._chance.uniform(0.02, 0.3))
        return None

    async def _send_later(self, sale: Sale, delay_s: float) -> None:
        """Step two of two, after a while."""
        await asyncio.sleep(delay_s)
        await self.send(sale.participant_id, sale.transaction_id)

    async def send(self, participant_id: ParticipantId, transaction_id: TransactionId) -> None:
        """Have a code that was issued delivered, by one node or another."""
        who = principal(participant_id)
        for _ in range(self._chance.randint(1, _ATTEMPTS_MAX)):
            node = self._sim.any_node()
            try:
                async with asyncio.timeout(ATTEMPT_S):
                    await self._hop(node)
                    await node.serve(node.send(who, participant_id, transaction_id))
                    await self._hop(node)
            except Refused:
                return
            except (UtrnError, TimeoutError):
                await asyncio.sleep(self._chance.uniform(0.02, 0.3))
            else:
                return

    async def _at(self, node: "SimNode", sale: Sale, *, repeat: bool) -> Any:
        await self._hop(node)
        issued = await node.serve(
            node.issue(principal(sale.participant_id), sale, time_left_s=ATTEMPT_S, repeat=repeat)
        )
        await self._hop(node)
        if self._chance.random() < self._sim.loss:
            # The answer is lost on its way.
            await asyncio.sleep(ATTEMPT_S)
        return issued

    async def _hop(self, node: "SimNode") -> None:
        await asyncio.sleep(self._chance.uniform(0.0003, 0.003))
        if node.link.dead:
            await asyncio.sleep(ATTEMPT_S)


async def _in_time(work: Awaitable[bool]) -> bool:
    try:
        return await work
    except TimeoutError:
        return False
