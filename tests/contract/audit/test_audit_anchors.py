"""Anchors in the ledger, fake and real: each file has one writer, and an end is overtaken by nothing."""

import pytest

from cluster.audit.anchors import EtcdAuditAnchors
from cluster.etcd import preconditions
from core.domain.errors import LedgerUnavailable
from core.ports.audit_anchors import Anchor, AnchorEnded, AnchorState
from tests.fakes.clock import HandClock
from tests.support.etcd import Store

FILE = "node-a-20261124T120000000000.trail"
OPEN = Anchor(3, "ab", AnchorState.OPEN, b"key")
DIED = OPEN._replace(block=4, state=AnchorState.DIED, own_block=3)


def _anchors(store: Store) -> EtcdAuditAnchors:
    return EtcdAuditAnchors(store.client, store.config, HandClock())


async def test_a_later_anchor_takes_the_place_of_an_earlier_one_and_is_read_as_it_was(store: Store) -> None:
    anchors = _anchors(store)
    await anchors.put(FILE, OPEN)
    await anchors.put(FILE, OPEN)
    last = OPEN._replace(block=9, state=AnchorState.FINISHED)
    await anchors.put(FILE, last)
    assert await _anchors(store).all_of("node-a") == {FILE: last}
    assert await _anchors(store).all_of("node") == {}
    assert await _anchors(store).all() == {FILE: last}


async def _ended_by_the_next_life(store: Store) -> EtcdAuditAnchors:
    """Return the anchors of a life that was only stopped, after its next life has ended the file."""
    stopped, after = _anchors(store), _anchors(store)
    await stopped.put(FILE, OPEN)
    await after.all_of("node-a")
    await after.put(FILE, DIED)
    return stopped


async def test_a_life_that_was_only_stopped_cannot_open_its_file_again(store: Store) -> None:
    stopped = await _ended_by_the_next_life(store)
    for _ in range(2):
        with pytest.raises(AnchorEnded):
            await stopped.put(FILE, OPEN._replace(block=5))
    assert await _anchors(store).all() == {FILE: DIED}


async def test_without_its_compare_the_end_of_a_file_is_written_over(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = await _ended_by_the_next_life(store)
    monkeypatch.setattr(preconditions, "anchor_unmoved", lambda *_: [])
    await stopped.put(FILE, OPEN._replace(block=5))
    assert await _anchors(store).all() != {FILE: DIED}


async def test_an_end_that_is_based_on_an_anchor_that_has_moved_is_tried_again(store: Store) -> None:
    first, after = _anchors(store), _anchors(store)
    await first.put(FILE, OPEN)
    await after.all_of("node-a")
    await first.put(FILE, OPEN._replace(block=4))
    with pytest.raises(LedgerUnavailable):
        await after.put(FILE, DIED)
    await after.put(FILE, DIED)
    assert await _anchors(store).all() == {FILE: DIED}
