"""TrailAnchors: how far each trail file goes, and its hash, where whoever edits a file on a node cannot reach."""

from typing import NamedTuple

from etcdpb import rpc_pb2 as pb
from utrn.store.v1 import records_pb2 as store

from cluster import ops
from cluster.client import EtcdClient, EtcdUnreachable
from cluster.commit import Known, commit_until_known, not_read
from cluster.config import EtcdConfig
from cluster.keys import Keys
from cluster.records import SCHEMA, Unreadable, read
from core.domain.errors import LedgerUnavailable
from core.ports.clock import Clock


class Anchor(NamedTuple):
    """The last block of a trail file that was anchored, counted from 0, and its hash."""

    block: int
    sha256: str


class TrailAnchors:
    """Keeps anchors. A node writes those of its own files only, so nothing need be compared."""

    def __init__(self, client: EtcdClient, config: EtcdConfig, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._keys = Keys(config.prefix)
        self._resolve_s = config.resolve_timeout_ms / 1000

    async def put(self, file: str, anchor: Anchor) -> None:
        """Keep how far a file goes; a later one takes the place of an earlier one.

        Raises:
            LedgerUnavailable: repeat with the newest.
        """
        record = store.TrailAnchorRecord(schema=SCHEMA, block=anchor.block, sha256=anchor.sha256)
        put = ops.put(self._keys.trail(file), record.SerializeToString(deterministic=True))
        # Safe to send again: carried out twice it is the same as once.
        until = self._clock.monotonic() + self._resolve_s
        settled = await commit_until_known(self._client, self._clock, pb.TxnRequest(success=[put]), until=until)
        if not isinstance(settled, Known):
            raise LedgerUnavailable("the trail could not be anchored; it is tried again") from settled.error

    async def all_of(self, node_id: str) -> dict[str, Anchor | None]:
        """Return the anchors of every trail file a node has written, by the file's name.

        None for one that this program cannot understand: the file is anchored, and cannot be checked against it.

        Raises:
            LedgerUnavailable: repeat.
        """
        try:
            found, _ = await self._client.list_prefix(self._keys.trail(f"{node_id}-"))
        except EtcdUnreachable as error:
            raise not_read(error) from error
        anchors = {self._keys.parse_trail(kv.key): _anchor(kv.value) for kv in found}
        # Another node's name may begin with this one's; what follows the name is an instant.
        begin = len(node_id) + 1
        return {file: one for file, one in anchors.items() if file[begin : begin + 8].isdecimal()}


def _anchor(value: bytes) -> Anchor | None:
    try:
        record = read(store.TrailAnchorRecord(), value)
    except Unreadable:
        return None
    return Anchor(record.block, record.sha256)
