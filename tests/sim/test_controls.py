"""Positive controls: take one guard away, and the checker must say which promise was broken.

A checker that stays green then would prove nothing when it is green otherwise.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from cluster.codec.vend import under_vend_key_of
from cluster.etcd import preconditions
from cluster.etcd.keys import Keys
from core.domain.cluster_time import TimeKeeper
from core.domain.vend import Vend
from core.issuing import issue
from core.ports.ledger import CommitOutcome, Committed, CounterState, Entry, Ledger, StoredVend
from tests.sim.world import Sabotage, Simulation, simulate

_SEEDS_MAX = 150
pytestmark = pytest.mark.timeout(300)


def first_broken(invariant: int, sabotage: Sabotage) -> int:
    """Return the first seed whose run breaks `invariant`."""
    for seed in range(1, _SEEDS_MAX + 1):
        if any(finding.invariant == invariant for finding in simulate(seed, sabotage).findings):
            return seed
    raise AssertionError(f"INV-{invariant} holds over {_SEEDS_MAX} seeds without its guard")


def _without(name: str) -> Callable[..., list[Any]]:
    return lambda *_: []


@pytest.mark.parametrize(
    ("guards", "invariant"),
    # Either of two compares alone keeps one counter to one code: the sequence's, and that of the code's own key.
    [
        (("vend_absent",), 1),
        (("counter_unmoved", "code_absent"), 2),
        (("epoch_current",), 5),
        (("ceiling_unmoved",), 16),
    ],
)
def test_without_this_compare_this_invariant_breaks(
    monkeypatch: pytest.MonkeyPatch, guards: tuple[str, ...], invariant: int
) -> None:
    for guard in guards:
        monkeypatch.setattr(preconditions, guard, _without(guard))
    seed = first_broken(invariant, Sabotage())
    monkeypatch.undo()
    assert simulate(seed).findings == [], "with its guard the same seed holds"


class EarlyLedger:
    """Says that a vend is committed when it has only begun to be."""

    def __init__(self, inner: Ledger) -> None:
        self._inner = inner
        self._tasks: set[asyncio.Task[Sequence[CommitOutcome]]] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def commit(self, entries: Sequence[Entry]) -> Sequence[CommitOutcome]:
        task = asyncio.get_running_loop().create_task(_outcomes(self._inner, entries))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return [
            Committed(
                stored=StoredVend(vend=entry.vend, revision=0),
                counter=CounterState(last_issued=entry.vend.counter, last_issued_here=entry.vend.counter),
            )
            for entry in entries
        ]


async def _outcomes(inner: Ledger, entries: Sequence[Entry]) -> Sequence[CommitOutcome]:
    return await inner.commit(entries)


@pytest.mark.parametrize("invariant", [3, 4])
def test_a_code_released_before_its_commit_is_found(invariant: int) -> None:
    first_broken(invariant, Sabotage(around=EarlyLedger))


def test_without_the_window_an_id_too_old_is_executed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(issue, "check_window", lambda *_, **__: None)
    seed = first_broken(7, Sabotage())
    monkeypatch.undo()
    assert simulate(seed).findings == [], "with its guard the same seed holds"


def test_a_node_that_asks_no_peer_takes_cluster_time_along_in_a_leap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TimeKeeper, "alone", lambda *_: False)
    seed = first_broken(14, Sabotage())
    monkeypatch.undo()
    assert simulate(seed).findings == [], "with its guard the same seed holds"


async def _prune_everything_closed(sim: Simulation) -> None:
    """Delete closed vends as an archiver would, but without waiting for the window to pass."""
    keys = Keys("sim/")
    while True:
        await asyncio.sleep(0.5)
        for key, one in list(sim.etcd.keys.items()):
            there = under_vend_key_of(one.value) if key.startswith(keys.vends()) else None
            if isinstance(there, Vend) and not there.delivery.owed:
                sim.etcd.delete(key)


def test_an_id_pruned_before_its_window_has_passed_gets_a_second_code() -> None:
    first_broken(1, Sabotage(nemesis=_prune_everything_closed))
