"""LedgerSpace: how full etcd is. Issuing stops well before etcd does; what protects people goes on to the end.

What etcd 3.4 does when its database reaches its quota (tests/contract/ledger/test_space.py): it raises NOSPACE,
which stays until an operator takes it away, and refuses every put that stands in a transaction itself, and every new
lease. It does not count what a nested transaction puts, so this service's own writes, all of which are nested under the
compare on the ledger's incarnation (`LedgerGuard.fenced`), would go on until the disk is full. That is used on purpose
for what protects people, and issuing is stopped here, by this node's own measure.
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import NoReturn

from etcdpb import rpc_pb2 as pb

from cluster.etcd.client import EtcdClient

log = logging.getLogger(__name__)

WARN_SHARE = 0.70
STOP_SHARE = 0.90
# Not again a moment later: what is freed is freed by an operator, and in one go.
RESUME_SHARE = 0.85
_LOOK_EVERY_S = 1.0
_SAY_AGAIN_S = 30.0
_PAGE = "docs/runbooks/etcd-space.md"


class LedgerSpace:
    """Looks at every member, and remembers the fullest."""

    def __init__(self, client: EtcdClient, quota_bytes: int) -> None:
        self._client = client
        self.quota_bytes = quota_bytes
        self.used_bytes = 0
        self.alarm = False
        self._full = False
        self._said = ("", 0.0)

    @property
    def full(self) -> bool:
        """True while nothing new may be issued."""
        return self._full

    @property
    def problems(self) -> list[str]:
        """What an operator should know, a sentence; nothing while there is room."""
        share = self.used_bytes / self.quota_bytes
        used = f"etcd holds {self.used_bytes / 1e6:.0f} of {self.quota_bytes / 1e6:.0f} MB"
        if self.alarm:
            return [
                f"etcd has raised NOSPACE ({used}): nothing is issued, and no node that starts gets a lease: do not "
                f"restart nodes, free space, and take the alarm away: {_PAGE}"
            ]
        if self._full:
            return [f"{used}: nothing is issued; blocks, suspensions and deliveries go on: {_PAGE}"]
        return [f"{used}: issuing stops at {STOP_SHARE:.0%}: {_PAGE}"] if share >= WARN_SHARE else []

    async def run(self) -> NoReturn:
        """Look for ever."""
        while True:
            self.take(await self._client.members())
            self._say()
            await asyncio.sleep(_LOOK_EVERY_S)

    def take(self, members: Mapping[str, pb.StatusResponse | None]) -> None:
        """Take in what the members say; of those that say nothing, what they said before still holds."""
        answered = [member for member in members.values() if member is not None]
        if not answered:
            return
        self.used_bytes = max(one.dbSize for one in answered)
        # A member tells the alarms of all: they are part of what the members agree on.
        self.alarm = any("NOSPACE" in error for one in answered for error in one.errors)
        share = self.used_bytes / self.quota_bytes
        self._full = self.alarm or share >= (RESUME_SHARE if self._full else STOP_SHARE)

    def _say(self) -> None:
        now, problems = asyncio.get_running_loop().time(), self.problems
        kind = "alarm" if self.alarm else "full" if self._full else "filling" if problems else ""
        said, at = self._said
        if kind == said and (not kind or now < at + _SAY_AGAIN_S):
            return
        self._said = kind, now
        if problems:
            log.error("the ledger runs out of space", extra={"why": problems[0]})
        else:
            log.info("the ledger has space", extra={"bytes": self.used_bytes, "quota": self.quota_bytes})
