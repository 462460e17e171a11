"""Cluster: what operators see of all nodes, shards and etcd members, and the drains they order."""

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from core.domain.approval import NO_CONSENT_NEEDED, Consent
from core.domain.participant import ParticipantId


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """A node that is alive or should be. `beat_age_ms` is -1 if it was never heard, `mirror_lag` -1 if unknown.

    `since`: when it first joined; None if it is not on the roster. `heard`: its last beat is not old; of one that is
    not heard nothing is told that only its beat could tell. `failing`: why it does not serve.
    """

    node_id: str
    address: str = ""
    zone: str = ""
    version: str = ""
    alive: bool = False
    serving: bool = False
    hsm_ready: bool = False
    mirror_ready: bool = False
    drained: bool = False
    lease_left_ms: int = 0
    lease_ttl_ms: int = 0
    beat_age_ms: int = -1
    mirror_lag: int = -1
    shards: int = 0
    issues_in_flight: int = 0
    deliveries_in_flight: int = 0
    missing_keys: tuple[str, ...] = ()
    since: datetime | None = None
    heard: bool = False
    failing: tuple[str, ...] = ()
    clock_off_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardStatus:
    """A shard; nobody owns it if `owner` is empty. `owed`: deliveries."""

    shard: int
    owner: str
    epoch: int
    owed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberStatus:
    """A member of etcd. It may answer and know no leader; `healthy` is both. `errors`: what it says is wrong."""

    endpoint: str
    healthy: bool
    answers: bool = False
    leader: bool = False
    version: str = ""
    db_bytes: int = 0
    raft_term: int = 0
    raft_index: int = 0
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadEndStatus:
    """A head end, as the nodes that are heard stand to it; see utrn.admin.v1.HeadEnd."""

    name: str
    configured_at: tuple[str, ...] = ()
    missing_at: tuple[str, ...] = ()
    reached_by: tuple[str, ...] = ()
    parked: int = 0
    oldest_parked_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeStatus:
    """Cluster time as a node sees it: what it is, how far the ledger has come, why it may be wrong.

    `clocks_off_ms`: how far the wall clocks of a majority are ahead of it; only if `clocks_agree`.
    """

    known: bool
    now_ms: int
    ledger_ms: int
    doubt: str
    clocks_agree: bool
    clocks_off_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterStatus:
    """The whole cluster as the node `asked` sees it at `revision` of the ledger.

    `reading`: that node has not read yet who is there and who should be. `ledger_problems`: what it has to say of the
    ledger itself, a sentence each: its identity, settings that are not as agreed, its space. `ledger_full`: nothing new
    is issued there because space runs out.
    """

    asked: str
    revision: int
    nodes: tuple[NodeStatus, ...]
    shards: tuple[ShardStatus, ...]
    members: tuple[MemberStatus, ...]
    time: TimeStatus
    head_ends: tuple[HeadEndStatus, ...] = ()
    reading: bool = False
    ledger_problems: tuple[str, ...] = ()
    ledger_full: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """A node is drained `since`, `by` whom."""

    node_id: str
    since: datetime
    by: ParticipantId


class Cluster(Protocol):
    """The cluster, seen and told from one node."""

    async def status(self) -> ClusterStatus:
        """Return what is now; without etcd what was last known, with `revision` 0."""
        ...

    async def drain(self, node_id: str, *, by: ParticipantId, at: datetime) -> Drain:
        """Order a drain: the node hands its shards over and sends its callers elsewhere, until the drain is ended.

        Raises:
            LedgerUnavailable, OutcomeUnknown: repeat.
        """
        ...

    async def forget(self, node_id: str) -> bool:
        """Remove a node from the roster, and end its drain; return False, with nothing done, if the node is alive.

        Raises:
            LedgerUnavailable, OutcomeUnknown: repeat.
        """
        ...

    async def forget_head_end(self, name: str) -> None:
        """Remove the name of a head end.

        Raises:
            LedgerUnavailable, OutcomeUnknown: repeat.
        """
        ...

    def time(self) -> TimeStatus:
        """Return what is known of cluster time now."""
        ...

    async def accept_time(self, *, by: ParticipantId, consent: Consent = NO_CONSENT_NEEDED) -> None:
        """Set cluster time to the wall clocks that agree: forward at once, back by letting it run slowly.

        `consent` is used up by the write.

        Raises:
            ClocksDisagree: none do, or cluster time is not known here.
            RecordChanged: the consent was used or withdrawn meanwhile.
            LedgerUnavailable, OutcomeUnknown: look and repeat.
        """
        ...

    async def undrain(self, node_id: str) -> None:
        """End the drain of a node.

        Raises:
            LedgerUnavailable, OutcomeUnknown: repeat.
        """
        ...
