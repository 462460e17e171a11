"""Runs small enough to see through, for the checker: one vend, sold, delivered and credited as it should be."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC

from app.verification.call_log import Call
from app.verification.checker import CodeKey, Credited, GiveUp, Run, Said
from cluster.audit.change_feed import (
    AppliedSeen,
    Change,
    CodeSeen,
    CounterSeen,
    LedgerEvent,
    OwedGone,
    OwedSeen,
    OwnerSeen,
    RecordSeen,
    VendSeen,
)
from cluster.codec.registry import name_of
from cluster.membership.placement import shard_of
from core.domain.delivery import Delivery, DeliveryReason, DeliveryState
from core.domain.record import ReadSet, Ref
from core.domain.vend import Operation, Vend
from core.ports.registry import RegistryRecord
from tests.support.head_ends import HEAD_END
from tests.support.origins import RANDOM_PART
from tests.support.vends import (
    APPOINTMENTS,
    NOW,
    ORIGINATOR,
    PSP,
    PSP_ID,
    SUPPLIER,
    card,
    meter,
    new_meter_id,
    vend,
    with_authorization,
)

SHARDS = 4
EPOCH = 10
GIVE_UP = GiveUp(attempts_max=3, after_s=100.0)


def ref_of(record: RegistryRecord) -> Ref:
    return Ref(*name_of(record))


@dataclass
class Story:
    """A ledger's history told change by change; every one has a revision of its own unless they are told together."""

    events: list[LedgerEvent]
    revision: int = 0

    def tell(self, *changes: Change) -> int:
        self.revision += 1
        self.events += [LedgerEvent(self.revision, change, float(self.revision)) for change in changes]
        return self.revision


def seen(stored: Vend, *, created: bool = False) -> VendSeen:
    return VendSeen(stored, created=created, key=(stored.sale.participant_id, stored.sale.transaction_id))


def owed(stored: Vend) -> OwedSeen:
    shard, key = shard_of(stored.meter_id, SHARDS), (stored.sale.participant_id, stored.sale.transaction_id)
    return OwedSeen(shard, stored.meter_id, stored.counter, stored.originator_id, key)


def paid_off(stored: Vend) -> OwedGone:
    return OwedGone(shard_of(stored.meter_id, SHARDS), stored.meter_id, stored.counter, stored.originator_id)


def market(stored: Vend) -> Story:
    """The records that a vend is sold on, and an owner of its shard."""
    story = Story([])
    for record in (SUPPLIER, PSP, APPOINTMENTS, meter(stored.meter_id), card(stored.sale.pan, stored.meter_id)):
        story.tell(RecordSeen(ref_of(record), record))
    story.revision = EPOCH - 1
    story.tell(OwnerSeen(shard_of(stored.meter_id, SHARDS), "node-a", EPOCH))
    return story


def basis_of(story: Story) -> ReadSet:
    """Every record of a story, each at its last revision."""
    last = {event.change.ref: event.revision for event in story.events if isinstance(event.change, RecordSeen)}
    return tuple(last.items())


def sent(stored: Vend, epoch: int = EPOCH) -> Vend:
    return stored.with_delivery(stored.delivery.send(NOW, epoch, head_end=HEAD_END, random_part=RANDOM_PART))


def closed(stored: Vend, state: DeliveryState, reason: DeliveryReason, epoch: int = EPOCH) -> Vend:
    return stored.with_delivery(stored.delivery.close(state, reason, NOW, epoch))


def applied(stored: Vend, epoch: int = EPOCH) -> Vend:
    return closed(stored, DeliveryState.APPLIED, DeliveryReason.CREDITED, epoch)


def new_vend(counter: int = 1, operation: Operation = Operation.TOP_UP) -> Vend:
    return vend(counter, new_meter_id(), operation=operation)


def sell(story: Story, stored: Vend) -> Vend:
    """Commit a vend on the records of the story."""
    stored = with_authorization(stored, read_set=basis_of(story))
    changes: list[Change] = [
        seen(stored, created=True),
        CounterSeen(ORIGINATOR, stored.meter_id, stored.counter),
        CodeSeen(stored.originator_id, stored.meter_id, stored.counter, seen(stored).key),
    ]
    story.tell(*changes, *([owed(stored)] if stored.delivery.owed else []))
    return stored


def deliver(story: Story, stored: Vend) -> Vend:
    """Send a vend and close it as applied."""
    story.tell(seen(on_its_way := sent(stored)))
    story.tell(
        seen(done := applied(on_its_way)),
        paid_off(stored),
        AppliedSeen(ORIGINATOR, stored.meter_id, stored.counter),
    )
    return done


def call_for(stored: Vend, began: float = 0, ended: float | None = 1, outcome: str = "ok", **facts: object) -> Call:
    settings = {
        "caller": "till", "participant": str(PSP_ID), "transaction_id": str(stored.sale.transaction_id),
        "content": f"{stored.sale.pan}/{stored.sale.operation.name}", "amount_pence": stored.sale.amount,
        "utrn": stored.utrn if outcome == "ok" else "", "digest": stored.utrn if outcome == "ok" else "",
    } | facts  # fmt: skip
    return Call(began=began, ended=ended, outcome=outcome, **settings)  # type: ignore[arg-type]


def credit(stored: Vend) -> Credited:
    return Credited(
        meter_id=stored.meter_id,
        originator_id=stored.originator_id,
        counter=stored.counter,
        utrn=stored.utrn,
        pence=stored.sale.amount,
    )


def code(stored: Vend) -> CodeKey:
    return CodeKey(stored.originator_id, stored.meter_id, stored.counter)


def run_of(story: Story, stored: Vend, *, credited: bool = True, told: bool = True) -> Run:
    """A run of the story in which the vend was asked for, answered, and credited."""
    return Run(
        calls=[call_for(stored)] if told else [],
        ledger=story.events,
        shards=SHARDS,
        give_up=GIVE_UP,
        credits=[credit(stored)] if credited else [],
        said=Said(credited={code(stored)} if credited else set()),
        began=NOW.astimezone(UTC),
    )


def good() -> tuple[Vend, Run]:
    """A run in which all went well."""
    stored = new_vend()
    story = market(stored)
    stored = sell(story, stored)
    done = deliver(story, stored)
    return done, run_of(story, done)


def with_delivery(stored: Vend, **facts: object) -> Vend:
    """A vend whose delivery says something else, whether or not that can be."""
    delivery: Delivery = replace(stored.delivery, **facts)  # type: ignore[arg-type]
    return stored.with_delivery(delivery)


def rewritten(ledger: Sequence[LedgerEvent], change: Callable[[VendSeen], VendSeen]) -> list[LedgerEvent]:
    """A ledger in which every write of a vend is another one."""
    return [
        replace(event, change=change(event.change)) if isinstance(event.change, VendSeen) else event for event in ledger
    ]
