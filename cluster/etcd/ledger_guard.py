"""LedgerGuard: is the ledger behind the client still the one that this node knows? If not, nothing is written.

What never goes back in one ledger, whatever its members do: the revision of linearizable replies, compared with what
had been heard when the call was *sent*; their raft term, but for a moment; the cluster id. A member that lags answers
such reads late, not from the past, so it raises no alarm; what lagging members say in other ways (watches, status,
leases) is not judged. A read that looks like the past is settled by a proposal through raft: some etcd versions answer
stale reads after a pause (upstream 20418). Every write carries a compare on the ledger's incarnation.
"""

import asyncio
import logging
from dataclasses import dataclass

from etcdpb import rpc_pb2 as pb

from cluster.etcd import ops

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Floor:
    """The least revision and raft term that a later linearizable reply may have."""

    revision: int
    term: int


class LedgerGuard:
    """Judges every reply, and says whether the ledger may be used. It begins closed: nobody has looked yet."""

    def __init__(self) -> None:
        self._revision = 0
        self._term = 0
        self._cluster_id = 0
        self._incarnation = ""
        self._peer_revisions: dict[str, int] = {}
        self._agreed_revision = 0
        self._fence: pb.Compare | None = None
        self._held = ""
        self._lost = ""
        self._doubted = False
        self.doubt = asyncio.Event()

    @property
    def why_closed(self) -> str:
        """Why nothing may be written; empty if it may."""
        return self.why_unreadable or self._held

    @property
    def why_unreadable(self) -> str:
        """Why nothing that is read may be believed; empty if it may."""
        if self._fence is None:
            return self._lost or "this node has not looked at its ledger yet"
        return self._lost or ("an answer from the past is looked into" if self._doubted else "")

    @property
    def lost(self) -> str:
        """How it was seen that this is not the ledger this node knows; empty if it was not. It stays so."""
        return self._lost

    @property
    def revision(self) -> int:
        """The highest revision that etcd itself has told."""
        return self._revision

    @property
    def cluster_id(self) -> int:
        """The etcd cluster that answers; 0 before the first answer."""
        return self._cluster_id

    def floor(self) -> Floor:
        """Return what the reply to a call sent now may not lie below."""
        return Floor(max(self._revision, self._agreed_revision), self._term)

    def know(self, incarnation: str, record: tuple[bytes, bytes], revision: int, cluster_id: int) -> None:
        """Set the known identity of the ledger: incarnation, the record's key and value, revision, cluster."""
        key, value = record
        self._incarnation = incarnation
        self._fence = pb.Compare(result=pb.Compare.EQUAL, target=pb.Compare.VALUE, key=key, value=value)
        self._revision = max(self._revision, revision)
        self._cluster_id = self._cluster_id or cluster_id

    def hold(self, why: str) -> None:
        """Close for a reason that may pass; an empty one opens again."""
        if why != self._held:
            say = log.error if why else log.info
            say("the ledger may not be used" if why else "the ledger is used", extra={"why": why})
        self._held = why

    def lose(self, how: str) -> None:
        """Close for good: this is not the ledger that this node knows."""
        if not self._lost:
            log.critical("the ledger is not the one this node knows; nothing is written any more", extra={"how": how})
        self._lost = self._lost or how

    def see(self, header: pb.ResponseHeader) -> None:
        """Check the cluster that a reply's header names, and raise the highest revision seen."""
        if not header.cluster_id:
            return
        if self._cluster_id and header.cluster_id != self._cluster_id:
            self.lose(f"another etcd cluster answers: {header.cluster_id:x}, not {self._cluster_id:x}")
            return
        self._cluster_id = header.cluster_id
        self._revision = max(self._revision, header.revision)

    def hear_of(self, node_id: str, incarnation: str, revision: int) -> None:
        """Take in how far the peer `node_id` says the ledger is. It is not kept over a restart.

        One peer alone is not believed: a node that is broken, or whose certificate is in the wrong hands, could close
        every other one for good by naming a revision that the ledger never had. What two peers say counts.
        """
        if incarnation and incarnation == self._incarnation:
            self._peer_revisions[node_id] = max(self._peer_revisions.get(node_id, 0), revision)
            said = sorted(self._peer_revisions.values(), reverse=True)
            self._agreed_revision = said[1] if len(said) > 1 else 0

    def may_be_ours(self, incarnation: str) -> bool:
        """Return whether a peer of that incarnation may be of this cluster; a node says none before it has looked."""
        return not incarnation or not self._incarnation or incarnation == self._incarnation

    def judge(self, header: pb.ResponseHeader, floor: Floor, *, proposed: bool) -> bool:
        """Return whether a linearizable reply may be believed; one that went through raft and lies below is proof."""
        self.see(header)
        if self._lost:
            return False
        told = f"revision {header.revision} and term {header.raft_term} after {floor.revision} and {floor.term}"
        if proposed and header.revision < floor.revision:
            self.lose(f"the ledger has gone back: {told}")
            return False
        if header.revision < floor.revision or header.raft_term < floor.term:
            # A term alone proves nothing at once: a member may have heard of one that no leader was elected in.
            log.error("an answer from the past; it is looked into", extra={"told": told})
            self._doubted = True
            self.doubt.set()
            return False
        self._term = max(self._term, header.raft_term)
        return True

    def trust_again(self) -> None:
        """End a doubt: a proposal has shown that the ledger is where it was."""
        self._doubted = False

    def fenced(self, request: pb.TxnRequest) -> pb.TxnRequest:
        """Return a transaction that is carried out only in the ledger's incarnation that this node knows.

        It is nested in another, which also keeps it out of etcd's space check: see `cluster/README.md`, "Space".
        """
        return pb.TxnRequest(compare=[] if self._fence is None else [self._fence], success=[ops.nested(request)])
