"""A record of a newer schema, or a garbled one, is set aside by every reader; the rest goes on. Fake and real etcd."""

from dataclasses import replace

import pytest
from etcdpb import rpc_pb2 as pb
from utrn.store.v1 import records_pb2 as store_pb

from cluster.audit.anchors import EtcdAuditAnchors
from cluster.audit.change_feed import NotUnderstood, event_of
from cluster.audit.ledger_scan import all_vends
from cluster.codec.registry import name_of, value_of
from cluster.codec.set_aside import SetAsideRecords
from cluster.codec.vend import SCHEMA, Unreadable, pointer_value, vend_value
from cluster.etcd import ops
from cluster.etcd.keys import Keys
from cluster.ledger.outbox import EtcdOutbox
from cluster.ledger.vends import EtcdLedger
from cluster.membership.placement import shard_of
from cluster.membership.shard_ownership import EtcdOwnership
from cluster.registry.replica import EtcdRegistryReplica
from cluster.registry.store import EtcdRegistryStore
from core.domain.delivery import DeliveryReason, DeliveryState
from core.domain.errors import LedgerUnavailable, NotReady
from core.domain.meter import Meter, MeterId
from core.domain.participant import ParticipantId
from core.domain.record import Kind
from core.gateways.system_clock import SystemClock
from core.ports.audit_anchors import Anchor
from core.ports.ledger import Committed, CounterState, Entry
from core.ports.outbox import Listing, Owed
from core.ports.registry import RegistryRecord
from tests.contract.etcd.test_informer import running, until
from tests.fakes.clock import HandClock
from tests.support.etcd import Store
from tests.support.vends import APPOINTMENTS, ORIGINATOR, PSP, PSP_ID, SUPPLIER_ID, card, meter, new_meter_id, vend

_Stored = (
    store_pb.VendRecord | store_pb.VendPointer | store_pb.ParticipantRecord | store_pb.CounterRecord
    | store_pb.AuditAnchorRecord
)  # fmt: skip
NEWER = SCHEMA + 1
GARBLED = b"\xff\xfenot a record"


async def put(store: Store, key: bytes, value: bytes) -> int:
    reply = await store.client.txn(pb.TxnRequest(success=[ops.put(key, value)]))
    return reply.header.revision


async def put_record(store: Store, record: RegistryRecord) -> None:
    await put(store, Keys(store.config.prefix).record(*name_of(record)), value_of(record))


def newer(record: "_Stored") -> bytes:
    record.schema = NEWER
    return record.SerializeToString()


def newer_meter(meter_id: MeterId) -> bytes:
    return store_pb.MeterRecord(schema=NEWER, meter_id=meter_id).SerializeToString()


async def owed(store: Store, meter_id: MeterId) -> Committed:
    ledger = EtcdLedger(store.client, store.config, HandClock())
    (outcome,) = await ledger.commit([Entry(vend=vend(1, meter_id), seen=CounterState())])
    assert isinstance(outcome, Committed)
    return outcome


async def test_an_outbox_record_that_cannot_be_understood_holds_up_no_other(store: Store) -> None:
    keys, aside, good = Keys(store.config.prefix), SetAsideRecords(), new_meter_id()
    await owed(store, good)
    pointer = newer(store_pb.VendPointer())
    await put(store, keys.outbox(1, new_meter_id(), 1, ORIGINATOR), pointer)
    await put(store, keys.outbox(2, new_meter_id(), 1, ORIGINATOR), GARBLED)
    await put(store, keys.outboxes() + b"no/such/name", b"")
    outbox, told = EtcdOutbox(store.client, store.config, HandClock(), aside), list[Owed]()

    async def hear() -> None:
        async for event in outbox.watch():
            told.extend(event.owed if isinstance(event, Listing) else [])

    async with running(outbox.run(), hear()):
        assert await until(lambda: outbox.mirrored)
        assert [one.meter_id for one in told] == [good]
        assert aside.counts == {"outbox": 3}
        # Told later, by the watch: the same.
        await put(store, keys.outbox(3, new_meter_id(), 1, ORIGINATOR), pointer)
        assert await until(lambda: aside.counts == {"outbox": 4})
        assert await outbox._mirror._informer.compare() == 0, "what is set aside is not called missing"


async def test_an_owed_vend_that_cannot_be_understood_is_not_sent_and_holds_up_no_other(store: Store) -> None:
    keys, aside, good, bad = Keys(store.config.prefix), SetAsideRecords(), new_meter_id(), new_meter_id()
    first, second = await owed(store, good), await owed(store, bad)
    sale = second.stored.vend.sale
    await put(
        store,
        keys.vend(sale.participant_id, sale.transaction_id),
        newer(store_pb.VendRecord()),
    )
    outbox = EtcdOutbox(store.client, store.config, HandClock(), aside)
    asked = [
        Owed(
            shard=shard_of(one.stored.vend.meter_id, store.config.shards),
            meter_id=one.stored.vend.meter_id, counter=one.stored.vend.counter, originator_id=ORIGINATOR,
            participant_id=one.stored.vend.sale.participant_id, transaction_id=one.stored.vend.sale.transaction_id,
        )
        for one in (first, second)
    ]  # fmt: skip
    read = await outbox.read(asked)
    assert [isinstance(one, NotReady) for one in read] == [False, True], "it is owed still"
    assert aside.counts == {"vend": 1}
    unread: list[str] = []
    assert [stored.vend.meter_id async for stored in all_vends(store.client, store.config, unread)] == [good]
    assert len(unread) == 1
    with pytest.raises(Unreadable):
        [stored async for stored in all_vends(store.client, store.config)]


async def test_the_registry_goes_on_around_what_it_cannot_understand(store: Store) -> None:
    keys, aside = Keys(store.config.prefix), SetAsideRecords()
    good, newer, garbled, later = (new_meter_id() for _ in range(4))
    registry = EtcdRegistryReplica(store.client, store.config, aside)
    await put_record(store, meter(good))
    await put(store, keys.record(Kind.METER, newer), newer_meter(newer))
    await put(store, keys.record(Kind.METER, garbled), GARBLED)
    await put(store, keys.record(Kind.DUE, "no instant"), b"")
    await put(store, keys.registry() + b"tariff/1", b"of a later version")
    async with running(registry.run()):
        assert await until(lambda: registry.ready)
        assert registry.meter(good) is not None
        assert registry.meter(later) is None
        for one in (newer, garbled):
            with pytest.raises(NotReady):
                registry.meter(one)
        assert aside.counts == {"meter": 2, "due": 1, "tariff": 1}
        # Heard later, by the watch: what was known of it before holds no more, and nothing ends.
        await put_record(store, meter(later))
        assert await until(lambda: registry.meter(later) is not None)
        await put(store, keys.record(Kind.METER, later), newer_meter(later))
        assert await until(lambda: aside.counts["meter"] == 3)
        with pytest.raises(NotReady):
            registry.meter(later)
        assert [one.meter_id async for one in registry.meters("")] == [good]
        # Understood again once it is written as this program knows it.
        await put_record(store, meter(newer))
        assert await until(lambda: aside.counts["meter"] == 2)
        assert registry.meter(newer) is not None
        assert await registry._informer.compare() == 0


async def test_nobody_is_unknown_because_a_record_is_set_aside(store: Store) -> None:
    keys = Keys(store.config.prefix)
    registry = EtcdRegistryReplica(store.client, store.config)
    await put_record(store, PSP)
    await put_record(store, APPOINTMENTS)
    await put_record(store, card("9826000000000000000", new_meter_id()))  # type: ignore[arg-type]
    (identity,) = PSP.identities
    async with running(registry.run()):
        assert await until(lambda: registry.ready)
        assert registry.caller("spiffe://somebody/else") is None
        # Heard in order: with the last of them, all are there.
        await put(store, keys.record(Kind.PAN, "9826000000000000000"), GARBLED)
        await put(
            store,
            keys.record(Kind.PARTICIPANT, SUPPLIER_ID),
            newer(store_pb.ParticipantRecord()),
        )
        await put(store, keys.record(Kind.APPOINTMENT, f"{SUPPLIER_ID}/{PSP_ID}"), GARBLED)
        await put(store, keys.record(Kind.MODEL, "Make/M1"), GARBLED)
        assert await until(lambda: registry.counts_aside() == 3)
        assert registry.caller(identity) is not None
        for asked in (
            lambda: registry.caller("spiffe://somebody/else"),
            lambda: registry.participant(SUPPLIER_ID),
            lambda: registry.appointments(SUPPLIER_ID, PSP_ID),
            lambda: registry.model("Make", "M1"),
            lambda: registry.card("9826000000000000000"),  # type: ignore[arg-type]
        ):
            with pytest.raises(NotReady):
                asked()
        assert registry.participant(ParticipantId("nobody")) is None


async def test_the_store_says_not_ready_for_one_and_lists_the_others(store: Store) -> None:
    keys, records = Keys(store.config.prefix), EtcdRegistryStore(store.client, store.config, HandClock())
    good, bad = sorted(new_meter_id() for _ in range(2))
    await put_record(store, meter(good))
    await put(store, keys.record(Kind.METER, bad), newer_meter(bad))
    with pytest.raises(NotReady):
        await records.read(Meter, bad)
    assert [stored.record.meter_id for stored in await records.list_records(Meter)] == [good]
    with pytest.raises(NotReady):
        await records.list_records(Meter, after=good)
    await put(store, keys.counter(ORIGINATOR, bad), GARBLED)
    with pytest.raises(NotReady):
        await records.sequence(ORIGINATOR, bad)


async def test_a_counter_that_cannot_be_understood_stops_its_meter_only(store: Store) -> None:
    keys, ledger = Keys(store.config.prefix), EtcdLedger(store.client, store.config, HandClock())
    good, bad = new_meter_id(), new_meter_id()
    await put(store, keys.counter(ORIGINATOR, bad), newer(store_pb.CounterRecord()))
    fine, failed = await ledger.counters([(ORIGINATOR, good), (ORIGINATOR, bad)])
    assert fine == CounterState()
    assert isinstance(failed, LedgerUnavailable)
    one, other = await ledger.commit([Entry(vend=vend(1, meter_id), seen=CounterState()) for meter_id in (good, bad)])
    assert isinstance(one, Committed)
    assert isinstance(other, LedgerUnavailable)


@pytest.mark.parametrize("kind", ["code", "counter", "applied"])
@pytest.mark.parametrize("value", [newer(store_pb.CounterRecord()), GARBLED], ids=["newer", "garbled"])
async def test_the_outbox_says_not_ready_for_a_counter_whose_records_it_cannot_understand(
    store: Store, kind: str, value: bytes
) -> None:
    """Whoever asks what a duplicate proves, or what a counter is, gets an error that the delivery waits for."""
    keys, aside, bad = Keys(store.config.prefix), SetAsideRecords(), new_meter_id()
    of = (await owed(store, bad)).stored.vend
    key = {
        "code": keys.code(ORIGINATOR, bad, of.counter),
        "counter": keys.counter(ORIGINATOR, bad),
        "applied": keys.applied(ORIGINATOR, bad),
    }[kind]
    was = (await store.client.range(pb.RangeRequest(key=key))).kvs
    await put(store, key, value)
    outbox = EtcdOutbox(store.client, store.config, HandClock(), aside)
    with pytest.raises(NotReady):
        await outbox.code(ORIGINATOR, bad, of.counter)
    if kind == "code":
        assert (await outbox.sequence(ORIGINATOR, bad)).last_issued == of.counter
    else:
        with pytest.raises(NotReady):
            await outbox.sequence(ORIGINATOR, bad)
    assert aside.counts == {kind: 1}
    # Put right, it is set aside no longer.
    right = [ops.put(key, kv.value) for kv in was] or [
        ops.put(key, store_pb.AppliedRecord(schema=SCHEMA, highest_applied=0).SerializeToString())
    ]
    await store.client.txn(pb.TxnRequest(success=right))
    assert (await outbox.code(ORIGINATOR, bad, of.counter)).stored is not None
    assert aside.counts == {kind: 0}


async def test_a_node_lives_with_members_shards_and_drains_it_cannot_understand(store: Store) -> None:
    keys, aside = Keys(store.config.prefix), SetAsideRecords()
    await put(store, keys.node("other"), GARBLED)
    await put(store, keys.shards() + b"first", b"other")
    await put(store, keys.shard(3), GARBLED)
    drain = store_pb.DrainRecord(schema=NEWER, node_id="node-a").SerializeToString()
    ownership = EtcdOwnership(store.client, store.config, SystemClock(), node_id="node-a", aside=aside)
    async with running(ownership.run()):
        assert await until(lambda: len(ownership.epochs()) == store.config.shards - 1)
        await put(store, keys.drain("node-a"), drain)
        assert await until(lambda: ownership.drained)
        assert list(ownership.drains()) == ["node-a"]
        ownership.members()
        ownership.owners()
        assert aside.counts == {"node": 1, "shard": 2, "drain": 1}


async def test_a_node_whose_own_roster_record_is_garbled_says_anew_where_it_is(store: Store) -> None:
    keys, aside = Keys(store.config.prefix), SetAsideRecords()
    await put(store, keys.roster("node-a"), GARBLED)
    ownership = EtcdOwnership(
        store.client, store.config, SystemClock(), node_id="node-a", address="10.0.0.1:8443", aside=aside
    )
    async with running(ownership.run()):
        assert await until(lambda: len(ownership.epochs()) == store.config.shards)
        assert await until(lambda: ownership.roster()["node-a"].address == "10.0.0.1:8443")
        assert ownership.roster()["node-a"].HasField("since")


async def test_a_case_that_cannot_be_understood_keeps_no_other_from_its_supplier(store: Store) -> None:
    keys, aside = Keys(store.config.prefix), SetAsideRecords()
    outcome = await owed(store, new_meter_id())
    of = outcome.stored.vend
    checked = replace(of.delivery, state=DeliveryState.NEEDS_CHECK, reason=DeliveryReason.DUPLICATE_UNPROVEN)
    await put(store, keys.vend(PSP_ID, of.sale.transaction_id), vend_value(of.with_delivery(checked)))
    await put(store, keys.case(SUPPLIER_ID, ORIGINATOR, of.meter_id, of.counter), pointer_value(of))
    await put(store, keys.case(SUPPLIER_ID, ORIGINATOR, new_meter_id(), 1), newer(store_pb.VendPointer()))
    await put(store, keys.case(SUPPLIER_ID, ORIGINATOR, new_meter_id(), 2), GARBLED)
    outbox = EtcdOutbox(store.client, store.config, HandClock(), aside)
    found, more = await outbox.cases(SUPPLIER_ID)
    assert ([case.vend.meter_id for case in found], more) == ([of.meter_id], "")
    assert aside.counts == {"case": 2}


async def test_what_reads_for_people_says_so(store: Store) -> None:
    keys, anchors = Keys(store.config.prefix), EtcdAuditAnchors(store.client, store.config, HandClock())
    await anchors.put("node-a-20261124T000000.jsonl", Anchor(1, "ab"))
    await put(store, keys.audit_anchor("node-a-20261125T000000.jsonl"), newer(store_pb.AuditAnchorRecord()))
    assert await anchors.all_of("node-a") == {
        "node-a-20261124T000000.jsonl": Anchor(1, "ab"), "node-a-20261125T000000.jsonl": None,
    }  # fmt: skip
    event = pb.Event(type=pb.Event.PUT, kv=pb.KeyValue(key=keys.vend("p", "t"), value=GARBLED, mod_revision=7))
    told = event_of(keys, event)
    assert told is not None
    assert told.change == NotUnderstood(f"{store.config.prefix}vend/p/t")
