"""Reads the whole ledger, for audits. Not on the path of a vend."""

from collections.abc import AsyncIterator

from cluster.client import EtcdClient
from cluster.config import EtcdConfig
from cluster.keys import Keys
from cluster.ledger import stored_of
from core.ports.ledger import StoredVend


async def all_vends(client: EtcdClient, config: EtcdConfig) -> AsyncIterator[StoredVend]:
    """Return every vend in the ledger, as of one revision, in the order of participant and id.

    Raises:
        EtcdUnreachable: no member answered.
    """
    found, _ = await client.list_prefix(Keys(config.prefix).vends(), page=2000)
    for one in found:
        yield stored_of(one)
