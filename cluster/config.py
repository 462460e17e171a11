"""EtcdConfig: where etcd is, how long to wait for it, and how ownership is timed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Interval

from core.net.address import parse_address


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdConfig:
    """EtcdConfig says how a node reaches the etcd that holds the ledger, and how long a call of etcd may take.

    Attributes:
        endpoints: host:port of every member.
        ca: PEM file of the authority of the members' certificates. Absent: plain text, for tests on loopback only.
        cert: PEM file of this node's client certificate.
        key: PEM file of its private key.
        server_name: Name in the members' certificates.
        prefix: What every key starts with, so that clusters can share an etcd.
        shards: 1 to 1024. How many shards delivery is cut into. Can never change once the ledger has data.
        call_timeout_ms: Milliseconds, 50 to 60000, for one call. Longer than an etcd election, a call would outlive it.
        ownership_timeout_ms: Milliseconds, 50 to 60000, for one call about leases, shards and suspicions. Shorter than
            an election: such a call is repeated at no cost, and one at a member that has gone must not be waited for.
        resolve_timeout_ms: Milliseconds, 100 to 60000, that a commit of unknown outcome is followed up before its
            caller is told to ask again.
        lease_ttl_s: Seconds, 1 to 60. etcd grants no less than 1.5 times its election timeout: 2 s by default.
        keepalive_ms: Milliseconds, 50 to 20000, between keepalives; at most a third of the lease.
        fence_share: 0.3 to 0.9. An owner stops starting work when this share of the lease has passed since its last
            acknowledged keepalive was sent.
        batch_max: Changes, 1 to 64, in one group commit.
        quota_bytes: Bytes, 1048576 to 1099511627776 (1 TiB): etcd's own --quota-backend-bytes, which it does not tell.
            Issuing stops at 90 % of it; the default is etcd's default.
        compare_outbox_s: Seconds, 0 to 86400, between comparisons of this node's copy of the outbox with the ledger; 0
            for none. A delivery that its watch has lost is found after so long.
        compare_members_s: The same, 0 to 86400, of nodes, shards, drains and what else is small.
        compare_registry_s: The same, 0 to 86400, of the registry: a million meters are read in pages, without their
            values.
    """

    endpoints: tuple[str, ...]
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    server_name: str = "localhost"
    prefix: str = "utrn/"
    shards: Annotated[int, Interval(ge=1, le=1024)] = 32
    call_timeout_ms: Annotated[int, Interval(ge=50, le=60_000)] = 1_000
    ownership_timeout_ms: Annotated[int, Interval(ge=50, le=60_000)] = 400
    resolve_timeout_ms: Annotated[int, Interval(ge=100, le=60_000)] = 8_000
    lease_ttl_s: Annotated[int, Interval(ge=1, le=60)] = 2
    keepalive_ms: Annotated[int, Interval(ge=50, le=20_000)] = 300
    fence_share: Annotated[float, Interval(ge=0.3, le=0.9)] = 0.6
    batch_max: Annotated[int, Interval(ge=1, le=64)] = 64
    quota_bytes: Annotated[int, Interval(ge=1024**2, le=1024**4)] = 2 * 1024**3
    compare_outbox_s: Annotated[float, Interval(ge=0, le=86_400)] = 5.0
    compare_members_s: Annotated[float, Interval(ge=0, le=86_400)] = 5.0
    compare_registry_s: Annotated[float, Interval(ge=0, le=86_400)] = 600.0

    def __post_init__(self) -> None:
        """Refuse sets that do not fit together."""
        if not self.endpoints:
            raise ValueError("endpoints: one host:port or more are needed")
        for endpoint in self.endpoints:
            parse_address(endpoint, field="endpoints")
        if len({self.ca is None, self.cert is None, self.key is None}) != 1:
            raise ValueError("ca, cert, key: all three or none")
        if self.keepalive_ms > self.lease_ttl_s * 1000 // 3:
            raise ValueError("keepalive_ms: must not be above a third of lease_ttl_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class PeersConfig:
    """PeersConfig says how a node notices that another node has died, or is silent.

    Attributes:
        ca: PEM file of the authority of nodes' certificates: the others' where this node calls, and of those that call
            it. Absent: crashes are left to the lease.
        crl: PEM file of that authority's revocation lists, for the nodes that call; absent: none.
        cert: PEM file of this node's client certificate, whose SAN URI is spiffe://utrn/node/<node id>.
        key: PEM file of its private key.
        server_name: Name in the other nodes' certificates.
        heartbeat_ms: Milliseconds, 50 to 5000, between beats.
        dial_timeout_ms: Milliseconds, 20 to 5000, that a broken stream's node has to take a new connection.
        suspect_ms: Milliseconds, 150 to 60000, without a beat after which a peer is suspected; at least three beats.
            Reckoned in ticks of this node, so that its own stalls are nobody's silence.
        answer_ms: Milliseconds, 50 to 10000, that a node suspected by a majority has to answer through etcd before its
            lease is revoked.
        redial_ms: Milliseconds, 200 to 60000, without a beat after which a connection is given up and dialled again.
        revokes_per_minute: 1 to 600. More deaths than that are left to the leases: a network that resets connections,
            or drops what it carries, must not keep nodes from working.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    crl: Path | None = None
    server_name: str = "localhost"
    heartbeat_ms: Annotated[int, Interval(ge=50, le=5_000)] = 150
    dial_timeout_ms: Annotated[int, Interval(ge=20, le=5_000)] = 200
    suspect_ms: Annotated[int, Interval(ge=150, le=60_000)] = 450
    answer_ms: Annotated[int, Interval(ge=50, le=10_000)] = 250
    redial_ms: Annotated[int, Interval(ge=200, le=60_000)] = 1_000
    revokes_per_minute: Annotated[int, Interval(ge=1, le=600)] = 10

    def __post_init__(self) -> None:
        """Refuse sets that do not fit together."""
        if len({self.ca is None, self.cert is None, self.key is None}) != 1:
            raise ValueError("ca, cert, key: all three or none")
        if self.suspect_ms < 3 * self.heartbeat_ms:
            raise ValueError("suspect_ms: must not be below three beats (heartbeat_ms)")
