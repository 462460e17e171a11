"""Lease: keeps itself alive, and knows by its own clock until when it may still be relied on."""

import logging

from cluster.config import EtcdConfig
from cluster.etcd.client import EtcdClient, EtcdRefused, EtcdUnknown, EtcdUnreachable
from core.ports.clock import Clock

log = logging.getLogger(__name__)


class Lease:
    """One lease at a time."""

    def __init__(self, client: EtcdClient, config: EtcdConfig, clock: Clock) -> None:
        self._client = client
        self._config = config
        self._clock = clock
        self._fence_s = 0.0
        self._good_until = float("-inf")
        self.lease_id = 0

    @property
    def good(self) -> bool:
        """True while work may be started in reliance on it.

        Counted from when the last acknowledged keepalive was sent, not from its answer: etcd counts from no later.
        """
        return self.lease_id != 0 and self._clock.monotonic() < self._good_until

    async def renew(self) -> bool:
        """Get a lease or keep it alive; return False if the one held is gone, and everything on it.

        Raises:
            EtcdUnreachable, EtcdUnknown, EtcdRefused: not acknowledged; try again at once.
        """
        sent_at = self._clock.monotonic()
        if self.lease_id == 0:
            self.lease_id, ttl_s = await self._client.grant_lease(self._config.lease_ttl_s)
            self._fence_s = ttl_s * self._config.fence_share
            if ttl_s > self._config.lease_ttl_s:
                log.info("etcd grants a longer lease", extra={"asked_s": self._config.lease_ttl_s, "granted_s": ttl_s})
        elif not await self._client.keep_alive(self.lease_id, timeout_s=self._config.keepalive_ms / 1000):
            self.lease_id = 0
            self._good_until = float("-inf")
            return False
        self._good_until = sent_at + self._fence_s
        return True

    async def give_up(self) -> None:
        """Revoke the lease, and with it every key on it, at once; if that fails, it runs out by itself."""
        lease_id, self.lease_id = self.lease_id, 0
        self._good_until = float("-inf")
        if lease_id:
            try:
                await self._client.revoke_lease(lease_id)
            except (EtcdUnreachable, EtcdUnknown, EtcdRefused) as error:
                log.info("the lease is left to run out", extra={"error": str(error)})
