"""EtcdAuditAnchors: how far each audit file goes, and its hash, where whoever edits a file on a node cannot reach."""

from typing import TYPE_CHECKING

from etcdpb import rpc_pb2 as pb
from utrn.store.v1 import records_pb2 as store

from cluster.codec.vend import SCHEMA, Unreadable, read
from cluster.config import EtcdConfig
from cluster.etcd import ops, preconditions
from cluster.etcd.client import EtcdClient, EtcdUnreachable
from cluster.etcd.commit import OutcomeKnown, commit_until_known, not_read
from cluster.etcd.keys import Keys
from core.domain.errors import LedgerUnavailable
from core.ports.audit_anchors import Anchor, AnchorEnded, AnchorState, AuditAnchors
from core.ports.clock import Clock


class EtcdAuditAnchors:
    """Keeps anchors. Each write compares what this node has last seen of the file's, so that no end is overtaken."""

    def __init__(self, client: EtcdClient, config: EtcdConfig, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._keys = Keys(config.prefix)
        self._resolve_s = config.resolve_timeout_ms / 1000
        self._seen: dict[str, int] = {}

    async def put(self, file: str, anchor: Anchor) -> None:
        """Keep how far a file goes; a later one takes the place of an earlier one.

        Raises:
            LedgerUnavailable: repeat with the newest.
            AnchorEnded: the file has an end, and this is not it.
        """
        key, wanted = self._keys.audit_anchor(file), _value(anchor)
        txn = pb.TxnRequest(
            compare=preconditions.anchor_unmoved(key, self._seen.get(file, 0)),
            success=[ops.put(key, wanted)],
            failure=[ops.get(key)],
        )
        # Safe to send again: carried out, its compare fails, and what is there is what was wanted.
        until = self._clock.monotonic() + self._resolve_s
        settled = await commit_until_known(self._client, self._clock, txn, until=until)
        if not isinstance(settled, OutcomeKnown):
            raise LedgerUnavailable("the audit file could not be anchored; it is tried again") from settled.error
        if settled.reply.succeeded:
            self._seen[file] = settled.revision
            return
        (there,) = ops.got(settled.reply)
        known = None if there is None else _anchor(there.value)
        if there is not None and there.value == wanted:
            self._seen[file] = there.mod_revision
            return
        if known is not None and known.ended:
            raise AnchorEnded(f"{file} was ended at block {known.block} by another life of this node")
        self._seen[file] = 0 if there is None else there.mod_revision
        raise LedgerUnavailable("the audit file's anchor was another than expected; it is tried again")

    async def all_of(self, node_id: str) -> dict[str, Anchor | None]:
        """Return the anchors of every audit file a node has written, by the file's name.

        None for one that this program cannot understand: the file is anchored, and cannot be checked against it.

        Raises:
            LedgerUnavailable: repeat.
        """
        # Another node's name may begin with this one's; what follows the name is an instant.
        begin = len(node_id) + 1
        found = await self._all(f"{node_id}-")
        return {file: one for file, one in found.items() if file[begin : begin + 8].isdecimal()}

    async def all(self) -> dict[str, Anchor | None]:
        """Return the anchors of every audit file of every node, as `all_of` does.

        Raises:
            LedgerUnavailable: repeat.
        """
        return await self._all("")

    async def _all(self, begin: str) -> dict[str, Anchor | None]:
        try:
            found, _ = await self._client.list_prefix(self._keys.audit_anchor(begin))
        except EtcdUnreachable as error:
            raise not_read(error) from error
        anchors: dict[str, Anchor | None] = {}
        for kv in found:
            file = self._keys.parse_audit_anchor(kv.key)
            anchors[file] = known = _anchor(kv.value)
            # Of one that has an end nothing is remembered: whatever would be written next finds that out.
            if known is not None and not known.ended:
                self._seen[file] = kv.mod_revision
        return anchors


def _value(anchor: Anchor) -> bytes:
    record = store.AuditAnchorRecord(
        schema=SCHEMA,
        block=anchor.block,
        sha256=anchor.sha256,
        state=anchor.state,
        utrn_key=anchor.key,
        own_block=anchor.own_block,
    )
    return record.SerializeToString(deterministic=True)


def _anchor(value: bytes) -> Anchor | None:
    try:
        record = read(store.AuditAnchorRecord(), value)
        state = AnchorState(record.state)
    except (Unreadable, ValueError):
        return None
    return Anchor(record.block, record.sha256, state, record.utrn_key, record.own_block)


if TYPE_CHECKING:
    _: type[AuditAnchors] = EtcdAuditAnchors
