"""The lease: counted from when its keepalive was sent, gone when etcd says so, and by its own clock before that."""

import asyncio
from typing import cast

import pytest

from cluster.config import EtcdConfig
from cluster.etcd.client import EtcdClient, EtcdUnknown
from cluster.membership.lease import Lease
from tests.fakes.clock import HandClock
from tests.fakes.etcd import FakeEtcd

CONFIG = EtcdConfig(endpoints=("fake:1",), lease_ttl_s=5, fence_share=0.8)
SLOW_S = 3.0


class SlowEtcd(FakeEtcd):
    """Answers keepalives late: the clock has gone on meanwhile."""

    def __init__(self, clock: HandClock) -> None:
        super().__init__()
        self._clock = clock
        self.slow = False
        self.silent = False

    async def keep_alive(self, lease_id: int, *, timeout_s: float) -> bool:
        alive = await super().keep_alive(lease_id, timeout_s=timeout_s)
        if self.slow:
            self._clock.advance(SLOW_S)
        if self.silent:
            raise EtcdUnknown("no answer")
        return alive


async def _lease() -> tuple[Lease, SlowEtcd, HandClock]:
    clock = HandClock()
    etcd = SlowEtcd(clock)
    lease = Lease(cast("EtcdClient", etcd), CONFIG, clock)
    assert await lease.renew()
    assert lease.good
    return lease, etcd, clock


async def test_it_counts_from_when_the_keepalive_was_sent() -> None:
    lease, etcd, clock = await _lease()
    etcd.slow = True
    assert await lease.renew()
    # Three seconds of the four have passed while the answer was on its way.
    assert lease.good
    clock.advance(1.1)
    assert not lease.good


async def test_one_that_is_gone_is_relied_on_no_more() -> None:
    lease, etcd, _ = await _lease()
    await etcd.revoke_lease(lease.lease_id)
    assert not await lease.renew()
    assert not lease.good
    assert lease.lease_id == 0
    assert await lease.renew(), "and another one is got"
    assert lease.good


async def test_what_was_not_acknowledged_does_not_count() -> None:
    lease, etcd, clock = await _lease()
    etcd.silent = True
    clock.advance(3.9)
    with pytest.raises(EtcdUnknown):
        await lease.renew()
    clock.advance(0.2)
    assert not lease.good


async def test_given_up_it_is_gone_for_the_others_too() -> None:
    lease, etcd, _ = await _lease()
    held = lease.lease_id
    await lease.give_up()
    assert not lease.good
    assert held not in etcd.leases
    await asyncio.sleep(0)
