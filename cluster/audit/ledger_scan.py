"""Reads the whole ledger, for audits. Not on the path of a vend."""

from collections.abc import AsyncIterator

from cluster.audit.change_feed import LedgerEvent, OwnerSeen, VendKey, record_seen, vend_key_of
from cluster.codec.vend import Unreadable, under_vend_key_of
from cluster.config import EtcdConfig
from cluster.etcd.client import EtcdClient
from cluster.etcd.keys import Keys
from cluster.ledger.vends import found_of
from core.domain.effective_dated import NEVER, Ms
from core.domain.record import Kind
from core.domain.refusal import ClosedRefusal
from core.domain.vend import Vend
from core.ports.ledger import StoredVend


async def all_vends(
    client: EtcdClient, config: EtcdConfig, unread: list[str] | None = None
) -> AsyncIterator[StoredVend]:
    """Return every vend in the ledger, as of one revision, in the order of participant and id; no closed refusals.

    The keys of those that this program cannot understand go into `unread`, and the rest goes on.

    Raises:
        EtcdUnreachable: no member answered.
        Unreadable: a vend cannot be understood, and nobody asked for the keys of such.
    """
    found, _ = await client.list_prefix(Keys(config.prefix).vends())
    for one in found:
        try:
            there = found_of(one)
        except Unreadable:
            if unread is None:
                raise
            unread.append(one.key.decode(errors="backslashreplace"))
            continue
        if isinstance(there, StoredVend):
            yield there


async def all_under_vend_keys(
    client: EtcdClient, config: EtcdConfig
) -> tuple[list[tuple[VendKey, Vend | ClosedRefusal | None]], int]:
    """Return what every vend key holds, None where this program cannot understand it, and as of which revision.

    The key is what the id was decided under; a record that was written over by hand may say otherwise.

    Raises:
        EtcdUnreachable: no member answered.
    """
    prefix = Keys(config.prefix).vends()
    found, revision = await client.list_prefix(prefix)
    return [
        (vend_key_of(one.key.decode(errors="backslashreplace").removeprefix(prefix.decode())), _held(one.value))
        for one in found
    ], revision


def _held(value: bytes) -> Vend | ClosedRefusal | None:
    try:
        return under_vend_key_of(value)
    except Unreadable:
        return None


async def all_owners(client: EtcdClient, config: EtcdConfig) -> tuple[list[OwnerSeen], int]:
    """Return who owns each owned shard, and the revision as of which that is so.

    Raises:
        EtcdUnreachable: no member answered.
    """
    keys = Keys(config.prefix)
    found, revision = await client.list_prefix(keys.shards())
    owners = [OwnerSeen(keys.parse_shard(kv.key), kv.value.decode(), kv.create_revision) for kv in found]
    return owners, revision


async def all_records(client: EtcdClient, config: EtcdConfig) -> list[LedgerEvent]:
    """Return the writing of every record of the registry that decides about a sale, as it stands now.

    Raises:
        EtcdUnreachable: no member answered.
    """
    keys = Keys(config.prefix)
    found, _ = await client.list_prefix(keys.registry())
    seen = [(kv.mod_revision, record_seen(keys, kv)) for kv in found]
    return [LedgerEvent(revision, change) for revision, change in seen if change is not None]


async def time_and_due(client: EtcdClient, config: EtcdConfig) -> tuple[Ms, set[Ms]]:
    """Return cluster time, in milliseconds, 0 if there is none; and the instants at which meters still change.

    Raises:
        EtcdUnreachable: repeat.
    """
    keys = Keys(config.prefix)
    due, _ = await client.list_prefix(keys.records(Kind.DUE))
    found, _ = await client.list_prefix(keys.time_now())
    instants = {Ms(int(keys.parse_registry(one.key)[1].split("/")[0])) for one in due}
    return Ms(int(found[0].value)) if found else NEVER, instants
