"""What every Ledger keeps, over the fake and over a real etcd; and what goes wrong when a compare is taken away."""

import asyncio

import pytest

from cluster.etcd import preconditions
from cluster.ledger.vends import EtcdLedger
from core.domain.errors import CounterTaken
from core.domain.vend import Operation
from core.ports.ledger import CommitOutcome, Committed, CounterMoved, CounterState, Entry, Present, StoredVend
from tests.fakes.clock import HandClock
from tests.support.etcd import Store
from tests.support.head_ends import HEAD_END
from tests.support.origins import RANDOM_PART
from tests.support.vends import ORIGINATOR, PSP_ID, new_id, new_meter_id, vend


@pytest.fixture
def ledger(store: Store) -> EtcdLedger:
    return EtcdLedger(store.client, store.config, HandClock())


async def _commit_one(ledger: EtcdLedger, entry: Entry) -> CommitOutcome:
    (outcome,) = await ledger.commit([entry])
    return outcome


def _stored(outcome: CommitOutcome) -> StoredVend:
    assert isinstance(outcome, Committed)
    return outcome.stored


async def test_a_committed_vend_is_found_as_it_was_committed(ledger: EtcdLedger) -> None:
    entry = Entry(vend=vend(1, new_meter_id()), seen=CounterState())
    committed = _stored(await _commit_one(ledger, entry))
    found = await ledger.find(PSP_ID, entry.vend.sale.transaction_id)
    assert found == committed
    assert found is not None
    assert found.vend == entry.vend


async def test_a_vend_never_committed_is_not_found(ledger: EtcdLedger) -> None:
    assert await ledger.find(PSP_ID, new_id()) is None


async def test_the_counter_moves_with_the_vend(ledger: EtcdLedger) -> None:
    meter_id = new_meter_id()
    (before,) = await ledger.counters([(ORIGINATOR, meter_id)])
    assert isinstance(before, CounterState)
    outcome = await _commit_one(ledger, Entry(vend=vend(1, meter_id), seen=before))
    (after,) = await ledger.counters([(ORIGINATOR, meter_id)])
    assert before == CounterState()
    assert isinstance(outcome, Committed)
    assert outcome.counter == after
    assert (after.last_issued, after.next, after.unapplied) == (1, 2, 1)


async def test_the_same_id_again_answers_what_is_there_and_moves_nothing(ledger: EtcdLedger) -> None:
    meter_id, transaction_id = new_meter_id(), new_id()
    first = await _commit_one(ledger, Entry(vend=vend(1, meter_id, transaction_id=transaction_id), seen=CounterState()))
    assert isinstance(first, Committed)
    again = await _commit_one(ledger, Entry(vend=vend(2, meter_id, transaction_id=transaction_id), seen=first.counter))
    assert again == Present(stored=first.stored)
    assert await ledger.counters([(ORIGINATOR, meter_id)]) == [first.counter]


async def test_an_old_counter_is_told_where_the_sequence_is(ledger: EtcdLedger) -> None:
    meter_id = new_meter_id()
    first = await _commit_one(ledger, Entry(vend=vend(1, meter_id), seen=CounterState()))
    assert isinstance(first, Committed)
    second = await _commit_one(ledger, Entry(vend=vend(1, meter_id, mac=9), seen=CounterState()))
    assert second == CounterMoved(counter=first.counter)


async def test_each_entry_of_a_batch_wins_or_loses_alone(ledger: EtcdLedger) -> None:
    meter_id, transaction_id = new_meter_id(), new_id()
    await _commit_one(ledger, Entry(vend=vend(1, meter_id, transaction_id=transaction_id), seen=CounterState()))
    entries = [
        Entry(vend=vend(1, new_meter_id()), seen=CounterState()),
        Entry(vend=vend(1, new_meter_id(), transaction_id=transaction_id), seen=CounterState()),
        Entry(vend=vend(1, meter_id, mac=1), seen=CounterState()),
        Entry(vend=vend(1, new_meter_id()), seen=CounterState()),
    ]
    kinds = [type(outcome) for outcome in await ledger.commit(entries)]
    assert kinds == [Committed, Present, CounterMoved, Committed]


async def test_a_full_batch_commits_in_one_go(ledger: EtcdLedger) -> None:
    entries = [Entry(vend=vend(1, new_meter_id()), seen=CounterState()) for _ in range(64)]
    outcomes = await ledger.commit(entries)
    assert [_stored(outcome).vend for outcome in outcomes] == [entry.vend for entry in entries]
    assert len({_stored(outcome).revision for outcome in outcomes}) == 1


async def test_one_bad_entry_does_not_sink_its_neighbours(ledger: EtcdLedger) -> None:
    twice = new_meter_id()
    entries = [
        Entry(vend=vend(1, new_meter_id()), seen=CounterState()),
        Entry(vend=vend(1, twice), seen=CounterState()),
        Entry(vend=vend(1, twice, mac=5), seen=CounterState()),
        Entry(vend=vend(1, new_meter_id()), seen=CounterState()),
    ]
    kinds = [type(outcome) for outcome in await ledger.commit(entries)]
    assert kinds[0] == kinds[3] == Committed
    assert sorted(kinds[1:3], key=lambda kind: kind.__name__) == [Committed, CounterMoved]


async def test_an_externally_issued_code_takes_its_own_counter(ledger: EtcdLedger) -> None:
    meter_id = new_meter_id()
    made = vend(7, meter_id, operation=Operation.EXTERNALLY_ISSUED)
    outcome = await _commit_one(ledger, Entry(vend=made, seen=CounterState()))
    assert isinstance(outcome, Committed)
    assert (outcome.counter.last_issued, outcome.counter.last_issued_here) == (7, 0)
    late = vend(5, meter_id, operation=Operation.EXTERNALLY_ISSUED)
    later = await _commit_one(ledger, Entry(vend=late, seen=outcome.counter))
    assert isinstance(later, Committed)
    assert later.counter.last_issued == 7


async def test_an_externally_issued_code_is_delivered_under_one_id_only(ledger: EtcdLedger) -> None:
    meter_id = new_meter_id()
    first = await _commit_one(
        ledger, Entry(vend=vend(7, meter_id, operation=Operation.EXTERNALLY_ISSUED), seen=CounterState())
    )
    assert isinstance(first, Committed)
    again = await _commit_one(
        ledger, Entry(vend=vend(7, meter_id, operation=Operation.EXTERNALLY_ISSUED), seen=first.counter)
    )
    assert isinstance(again, CounterTaken)


async def test_an_externally_issued_code_cannot_use_a_counter_spent_here(ledger: EtcdLedger) -> None:
    meter_id = new_meter_id()
    ours = await _commit_one(ledger, Entry(vend=vend(1, meter_id), seen=CounterState()))
    assert isinstance(ours, Committed)
    theirs = vend(1, meter_id, operation=Operation.EXTERNALLY_ISSUED, mac=3)
    assert isinstance(await _commit_one(ledger, Entry(vend=theirs, seen=ours.counter)), CounterTaken)


async def test_delivery_is_asked_for_once(ledger: EtcdLedger) -> None:
    issued = vend(1, new_meter_id(), operation=Operation.ISSUE)
    stored = _stored(await _commit_one(ledger, Entry(vend=issued, seen=CounterState())))
    queued = issued.with_delivery(issued.delivery.queue(HandClock().now()))
    written = await ledger.request_delivery(stored, queued, ())
    assert written is not None
    assert await ledger.find(PSP_ID, issued.sale.transaction_id) == written
    other = issued.with_delivery(queued.delivery.send(HandClock().now(), 1, head_end=HEAD_END, random_part=RANDOM_PART))
    assert await ledger.request_delivery(stored, other, ()) is None


async def _race_for_one_id(store: Store) -> set[str]:
    """Two nodes are asked for one id at once; return the codes that were given out."""
    ledgers = [EtcdLedger(store.client, store.config, HandClock()) for _ in range(2)]
    transaction_id = new_id()
    codes: set[str] = set()
    for ledger in ledgers:
        # Each node resolved the PAN to another meter, so that only the id ties the two together.
        outcome = await _commit_one(
            ledger, Entry(vend=vend(1, new_meter_id(), transaction_id=transaction_id), seen=CounterState())
        )
        assert isinstance(outcome, Committed | Present)
        codes.add(outcome.stored.vend.meter_id)
    return codes


async def _race_for_one_counter(store: Store) -> int:
    """Two nodes with the same stale counter issue for one meter; return how many codes came out under it."""
    ledger, meter_id = EtcdLedger(store.client, store.config, HandClock()), new_meter_id()
    outcomes = [await _commit_one(ledger, Entry(vend=vend(1, meter_id, mac=n), seen=CounterState())) for n in (1, 2)]
    return sum(isinstance(outcome, Committed) for outcome in outcomes)


async def test_one_id_gets_one_code_at_two_nodes(store: Store) -> None:
    assert len(await _race_for_one_id(store)) == 1


async def test_without_the_vend_absent_compare_one_id_gets_two_codes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preconditions, "vend_absent", lambda key: [])
    assert len(await _race_for_one_id(store)) == 2


async def test_one_counter_gets_one_code_at_two_nodes(store: Store) -> None:
    assert await _race_for_one_counter(store) == 1


@pytest.mark.parametrize("without", ["counter_unmoved", "code_absent"])
async def test_either_compare_alone_keeps_one_counter_to_one_code(
    without: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preconditions, without, lambda *_: [])
    assert await _race_for_one_counter(store) == 1


async def test_without_the_counter_and_code_compares_one_counter_gets_two_codes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preconditions, "counter_unmoved", lambda key, revision: [])
    monkeypatch.setattr(preconditions, "code_absent", lambda key: [])
    assert await _race_for_one_counter(store) == 2


async def _two_ids_for_an_externally_issued_code(ledger: EtcdLedger) -> CommitOutcome:
    """Return what becomes of a code made elsewhere whose counter has a vend, asked for under another id."""
    meter_id, state = new_meter_id(), CounterState()
    for counter in (7, 9):
        one = vend(counter, meter_id, operation=Operation.EXTERNALLY_ISSUED)
        outcome = await _commit_one(ledger, Entry(vend=one, seen=state))
        assert isinstance(outcome, Committed)
        state = outcome.counter
    return await _commit_one(ledger, Entry(vend=vend(7, meter_id, operation=Operation.EXTERNALLY_ISSUED), seen=state))


async def test_without_the_code_compare_one_counter_has_two_vends(
    ledger: EtcdLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(await _two_ids_for_an_externally_issued_code(ledger), CounterTaken)
    monkeypatch.setattr(preconditions, "code_absent", lambda key: [])
    assert isinstance(await _two_ids_for_an_externally_issued_code(ledger), Committed)


async def test_many_nodes_on_one_meter_leave_a_dense_sequence(store: Store) -> None:
    meter_id, nodes, each = new_meter_id(), 4, 8

    async def issue(node: int) -> list[int]:
        ledger, state = EtcdLedger(store.client, store.config, HandClock()), CounterState()
        counters: list[int] = []
        while len(counters) < each:
            outcome = await _commit_one(ledger, Entry(vend=vend(state.next, meter_id, mac=node), seen=state))
            assert isinstance(outcome, Committed | CounterMoved)
            state = outcome.counter
            if isinstance(outcome, Committed):
                counters.append(outcome.stored.vend.counter)
        return counters

    async with asyncio.TaskGroup() as tasks:
        issuing = [tasks.create_task(issue(node)) for node in range(nodes)]
    assert sorted(counter for one in issuing for counter in one.result()) == list(range(1, nodes * each + 1))
