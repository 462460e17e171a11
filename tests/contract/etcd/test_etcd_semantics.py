"""What etcd itself promises and we rely on, over the fake and over a real one: the fake stands for it only in this."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from etcdpb import rpc_pb2 as pb

from cluster.etcd import ops, preconditions
from cluster.etcd.client import Compacted, EtcdRefused
from tests.support.etcd import Store
from tests.support.patience import PATIENCE_S


def _key(store: Store, name: str) -> bytes:
    return f"{store.config.prefix}{name}".encode()


async def _put(store: Store, name: str, value: bytes = b"v", *, lease: int = 0) -> int:
    reply = await store.client.txn(pb.TxnRequest(success=[ops.put(_key(store, name), value, lease=lease)]))
    return reply.header.revision


async def _get(store: Store, name: str) -> pb.KeyValue | None:
    reply = await store.client.range(pb.RangeRequest(key=_key(store, name)))
    return reply.kvs[0] if reply.kvs else None


async def _events(watch: AsyncIterator[pb.WatchResponse], count: int) -> list[pb.Event]:
    found: list[pb.Event] = []
    async with asyncio.timeout(PATIENCE_S):
        async for reply in watch:
            found += reply.events
            if len(found) >= count:
                return found
    raise AssertionError


async def test_revisions_rise_by_one_per_writing_transaction_and_versions_count(store: Store) -> None:
    first = await _put(store, "a", b"1")
    second = await _put(store, "a", b"2")
    found = await _get(store, "a")
    assert found is not None
    assert (found.create_revision, found.mod_revision, found.version, found.value) == (first, second, 2, b"2")
    assert second == first + 1
    read = await store.client.txn(pb.TxnRequest(success=[ops.get(_key(store, "a"))]))
    assert read.header.revision == second


async def test_children_are_compared_with_the_state_before_the_batch_and_lose_alone(store: Store) -> None:
    await _put(store, "there")
    children = [
        pb.TxnRequest(
            compare=preconditions.absent(_key(store, name)),
            success=[ops.put(_key(store, name), b"new")],
            failure=[ops.get(_key(store, name))],
        )
        for name in ("x", "there")
    ]
    reply = await store.client.txn(ops.group(children))
    assert [op.response_txn.succeeded for op in reply.responses] == [True, False]
    assert ops.got(reply.responses[1].response_txn)[0] is not None
    again = await store.client.txn(ops.group(children))
    assert [op.response_txn.succeeded for op in again.responses] == [False, False]


async def test_a_key_put_by_two_children_sinks_the_batch_and_writes_nothing(store: Store) -> None:
    child = pb.TxnRequest(success=[ops.put(_key(store, "twice"), b"1")])
    with pytest.raises(EtcdRefused) as refused:
        await store.client.txn(ops.group([child, child]))
    assert refused.value.malformed
    assert await _get(store, "twice") is None


@pytest.mark.parametrize(
    ("children", "each", "fits"), [(64, 64, True), (100, 28, True), (100, 29, False), (129, 1, False)]
)
async def test_the_limit_on_operations_is_by_depth(store: Store, children: int, each: int, *, fits: bool) -> None:
    def child(number: int) -> pb.TxnRequest:
        return pb.TxnRequest(success=[ops.get(_key(store, f"{number}-{index}")) for index in range(each)])

    request = ops.group([child(number) for number in range(children)])
    if fits:
        assert len((await store.client.txn(request)).responses) == children
    else:
        with pytest.raises(EtcdRefused, match="too many operations"):
            await store.client.txn(request)


async def test_a_lease_that_is_not_kept_alive_takes_its_keys_with_it(store: Store) -> None:
    lease, ttl_s = await store.client.grant_lease(1)
    before = await _put(store, "leased-a", lease=lease)
    await _put(store, "leased-b", lease=lease)
    left, granted = await store.client.lease_left_s(lease)
    assert 0 <= left <= ttl_s == granted
    gone = await _events(store.client.watch(_key(store, "leased"), before + 1), 2)
    assert {event.type for event in gone} == {pb.Event.DELETE}
    assert await _get(store, "leased-a") is None
    assert not await store.client.keep_alive(lease, timeout_s=1.0)
    assert (await store.client.lease_left_s(lease))[0] == -1
    with pytest.raises(EtcdRefused):
        await _put(store, "late", lease=lease)


async def test_a_child_that_names_a_dead_lease_sinks_the_batch_if_it_would_be_carried_out(store: Store) -> None:
    await _put(store, "there")
    lease, _ = await store.client.grant_lease(60)
    await store.client.revoke_lease(lease)

    def claim(name: str) -> pb.TxnRequest:
        key = _key(store, name)
        return pb.TxnRequest(compare=preconditions.absent(key), success=[ops.put(key, b"mine", lease=lease)])

    reply = await store.client.txn(ops.group([claim("there")]))
    assert not reply.responses[0].response_txn.succeeded
    plain = pb.TxnRequest(success=[ops.put(_key(store, "plain"), b"1")])
    with pytest.raises(EtcdRefused) as refused:
        await store.client.txn(ops.group([plain, claim("free")]))
    assert not refused.value.malformed
    assert await _get(store, "plain") is None


async def test_a_lease_that_is_kept_alive_stays(store: Store) -> None:
    lease, ttl_s = await store.client.grant_lease(1)
    await _put(store, "kept", lease=lease)
    loop = asyncio.get_running_loop()
    until = loop.time() + ttl_s + 1.5
    while loop.time() < until:
        assert await store.client.keep_alive(lease, timeout_s=1.0)
        await asyncio.sleep(0.2)
    assert await _get(store, "kept") is not None
    await store.client.revoke_lease(lease)


async def test_a_revoked_lease_deletes_at_one_revision_and_only_its_own(store: Store) -> None:
    mine, _ = await store.client.grant_lease(60)
    other, _ = await store.client.grant_lease(60)
    await _put(store, "r/1", lease=mine)
    await _put(store, "r/2", lease=mine)
    after = await _put(store, "r/3", lease=other)
    await store.client.revoke_lease(mine)
    gone = await _events(store.client.watch(_key(store, "r/"), after), 2)
    assert len({event.kv.mod_revision for event in gone}) == 1
    assert await _get(store, "r/3") is not None
    with pytest.raises(EtcdRefused):
        await store.client.revoke_lease(mine)
    await store.client.revoke_lease(other)


async def test_a_watch_tells_every_change_in_order_from_any_revision(store: Store) -> None:
    first = await _put(store, "w/1")
    for number in range(2, 6):
        await _put(store, f"w/{number}")
    await _put(store, "elsewhere")
    events = await _events(store.client.watch(_key(store, "w/"), first - 1), 5)
    assert [event.kv.key for event in events] == [_key(store, f"w/{number}") for number in range(1, 6)]
    later = await _events(store.client.watch(_key(store, "w/"), events[2].kv.mod_revision), 2)
    assert [event.kv.key for event in later] == [_key(store, "w/4"), _key(store, "w/5")]


async def test_a_watch_from_before_a_compaction_says_so(store: Store) -> None:
    first = await _put(store, "c/1")
    last = await _put(store, "c/2")
    await store.client.compact(last)
    with pytest.raises(Compacted):
        await _events(store.client.watch(_key(store, "c/"), first - 1), 1)
    found, revision = await store.client.list_prefix(_key(store, "c/"))
    assert (len(found), revision) == (2, last)
    with pytest.raises(EtcdRefused):
        await store.client.compact(last)


_R = pb.Compare


@pytest.mark.parametrize(
    ("there", "result", "asked", "holds"),
    [
        (b"0000000000000999", _R.GREATER, b"0000000000000998", True),
        (b"0000000000000999", _R.GREATER, b"0000000000000999", False),
        (b"0000000000001000", _R.GREATER, b"0000000000000999", True),
        (b"0000000000000998", _R.LESS, b"0000000000000999", True),
        (b"0000000000000999", _R.LESS, b"0000000000000999", False),
        (b"0000000000000999", _R.EQUAL, b"0000000000000999", True),
        (b"0000000000000999", _R.NOT_EQUAL, b"0000000000000999", False),
        # Bytes, not numbers: only what is of one width is in order.
        (b"9", _R.GREATER, b"10", True),
        # A key that is not there is neither.
        (None, _R.GREATER, b"0000000000000000", False),
        (None, _R.LESS, b"9999999999999999", False),
        (None, _R.NOT_EQUAL, b"9", False),
    ],
)
async def test_values_are_compared_byte_by_byte_before_the_batch_in_nested_ones_too(
    store: Store, there: bytes | None, result: pb.Compare.CompareResult.ValueType, asked: bytes, *, holds: bool
) -> None:
    key = _key(store, "time")
    if there is not None:
        await _put(store, "time", there)
    compare = [pb.Compare(result=result, target=pb.Compare.VALUE, key=key, value=asked)]
    assert (await store.client.txn(pb.TxnRequest(compare=compare))).succeeded is holds
    # Another child of the batch that sets the key does not count: all compare what was before.
    setting = pb.TxnRequest(success=[ops.put(key, b"5")])
    reply = await store.client.txn(ops.group([setting, pb.TxnRequest(compare=compare)]))
    assert reply.responses[1].response_txn.succeeded is holds
