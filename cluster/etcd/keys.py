"""Every key in etcd: the only place where keys are spelled.

| key, under the prefix | value | written by | lives |
|---|---|---|---|
| vend/<participant>/<transaction id> | VendRecord: vend or refusal | commit; shard owner; refusal | until archived |
| counter/<originator>/<meter> | CounterRecord | commit; hand-over | for ever |
| applied/<originator>/<meter> | AppliedRecord | owner of its shard; who settles a case; hand-over | for ever |
| code/<originator>/<meter>/<counter> | VendPointer | commit; whoever ends its delivery | until archived |
| case/<supplier>/<originator>/<meter>/<counter> | VendPointer | owner of its shard; who settles it | while open |
| heard/<shard>/<head end> | HeardRecord | owner of the shard | for ever |
| outbox/<shard>/<meter>/<counter>/<originator> | VendPointer | commit adds, owner removes | while delivery is owed |
| shard/<shard> | owner's node id, on its lease | election | with the lease; its create_revision is the epoch |
| node/<node> | NodeRecord, on its lease | each node | with the lease |
| drain/<node> | DrainRecord | an operator | until the drain is ended |
| suspicion/<node>/<by> | SuspicionRecord, on the lease of `by` | a node that does not hear a peer | until it does |
| suspicion/<node>/<node> | SuspicionRecord, on its lease | a node that is suspected, as its answer | with the lease |
| roster/<node> | RosterRecord | each node, when it first joins | until an operator takes it off |
| time/now | cluster time, milliseconds since 1970, 16 digits; only rises | nodes with a good lease | for ever |
| time/doubt | why it may be wrong (`gap`, `ahead`), and who says so | a starting node; an operator | until settled |
| head-end/<name> | HeadEndRecord | each node that is configured with it, once | until an operator takes it away |
| registry/participant/<id>, registry/meter/<id>, registry/pan/<pan> | records | registry changes | for ever |
| registry/appointment/<supplier>/<psp>, registry/model/<make>/<model> | records | registry changes | for ever |
| registry/due/<instant>/<meter> | empty | registry changes | until the change is carried out |
| identity/<SAN URI, hashed>, originator/<EUI-64> | who has taken it | registry changes | while it is taken |
| change/<supplier>/<instant>/<meter> | MarketChangeRecord | what carries a change out | until archived |
| credit/<supplier>/<transaction id> | CreditRequestRecord | credit without payment | until archived |
| credit-day/<supplier>/<day> | CreditDayRecord | credit without payment | until archived |
| approval/<approval id> | ApprovalRecord | operators: what needs two of them | until asked for anew |
| ceiling/<participant> | CeilingRecord | each node that sells for it, from what is left | for ever |
| trail/<file> | AuditAnchorRecord | the node that writes the file | for ever |
| config/ledger | LedgerRecord | `utrn ledger create`, `accept` | for ever |
| config/agreed | AgreedRecord | `utrn ledger create`, `agree` | for ever |

Counters are written with ten digits, so that the keys of one meter sort as its counters do.
"""

from dataclasses import dataclass

from core.domain.meter import MeterId, OriginatorId
from core.domain.record import Kind
from core.domain.utrn import Counter

# Followed by every node: one prefix, so that one watch brings all of them in order. The others are read when needed.
_FOLLOWED = frozenset({Kind.PARTICIPANT, Kind.METER, Kind.PAN, Kind.APPOINTMENT, Kind.MODEL, Kind.DUE})
_ROOMS = {kind: f"registry/{kind}/" if kind in _FOLLOWED else f"{kind}/" for kind in Kind}


@dataclass(frozen=True, slots=True)
class Keys:
    """Spells keys under one prefix."""

    prefix: str

    def vend(self, participant_id: str, transaction_id: str) -> bytes:
        """The vend itself."""
        return f"{self.prefix}vend/{participant_id}/{transaction_id}".encode()

    def vends(self) -> bytes:
        """Prefix of all vends."""
        return f"{self.prefix}vend/".encode()

    def counter(self, originator_id: str, meter_id: str) -> bytes:
        """The counter sequence."""
        return f"{self.prefix}counter/{originator_id}/{meter_id}".encode()

    def applied(self, originator_id: str, meter_id: str) -> bytes:
        """The highest counter known to be applied."""
        return f"{self.prefix}applied/{originator_id}/{meter_id}".encode()

    def code(self, originator_id: str, meter_id: str, counter: int) -> bytes:
        """Which vend a counter belongs to: how what a meter says of a counter finds its vend."""
        return f"{self.prefix}code/{originator_id}/{meter_id}/{counter:010d}".encode()

    def codes(self, originator_id: str, meter_id: str) -> bytes:
        """Prefix of all codes of a counter sequence."""
        return f"{self.prefix}code/{originator_id}/{meter_id}/".encode()

    def parse_code(self, key: bytes) -> Counter:
        """Return the counter of a code."""
        return Counter(int(key.decode().rsplit("/", 1)[1]))

    def case(self, supplier_id: str, originator_id: str, meter_id: str, counter: int) -> bytes:
        """A code of which nobody knows whether it was credited: a task of the supplier it was sold under."""
        return f"{self.prefix}case/{supplier_id}/{originator_id}/{meter_id}/{counter:010d}".encode()

    def cases(self, supplier_id: str = "") -> bytes:
        """Prefix of the open cases of a supplier; of everybody's, if none is named."""
        return f"{self.prefix}case/{supplier_id}{'/' if supplier_id else ''}".encode()

    def heard(self, shard: int, head_end: str) -> bytes:
        """Up to which event of a head end all that its meters said of codes is written down, for one shard."""
        return f"{self.prefix}heard/{shard:04d}/{head_end}".encode()

    def outbox(self, shard: int, meter_id: str, counter: int, originator_id: str) -> bytes:
        """An owed delivery. After a change of supplier two sequences of one meter may owe the same counter."""
        return f"{self.prefix}outbox/{shard:04d}/{meter_id}/{counter:010d}/{originator_id}".encode()

    def outboxes(self) -> bytes:
        """Prefix of all owed deliveries."""
        return f"{self.prefix}outbox/".encode()

    def parse_outbox(self, key: bytes) -> tuple[int, MeterId, Counter, OriginatorId]:
        """Return shard, meter, counter and originator of an owed delivery."""
        shard, meter_id, counter, originator_id = key.decode().removeprefix(f"{self.prefix}outbox/").split("/")
        return int(shard), MeterId(meter_id), Counter(int(counter)), OriginatorId(originator_id)

    def shard(self, shard: int) -> bytes:
        """The key of a shard's owner."""
        return f"{self.prefix}shard/{shard:04d}".encode()

    def shards(self) -> bytes:
        """Prefix of all owners."""
        return f"{self.prefix}shard/".encode()

    def parse_shard(self, key: bytes) -> int:
        """Return the number of a shard."""
        return int(key.decode().removeprefix(f"{self.prefix}shard/"))

    def node(self, node_id: str) -> bytes:
        """A live node."""
        return f"{self.prefix}node/{node_id}".encode()

    def nodes(self) -> bytes:
        """Prefix of all live nodes."""
        return f"{self.prefix}node/".encode()

    def drain(self, node_id: str) -> bytes:
        """A drained node."""
        return f"{self.prefix}drain/{node_id}".encode()

    def drains(self) -> bytes:
        """Prefix of all drained nodes."""
        return f"{self.prefix}drain/".encode()

    def roster(self, node_id: str) -> bytes:
        """A node that should be there."""
        return f"{self.prefix}roster/{node_id}".encode()

    def rosters(self) -> bytes:
        """Prefix of all nodes that should be there."""
        return f"{self.prefix}roster/".encode()

    def time(self) -> bytes:
        """Prefix of cluster time and what is in doubt about it."""
        return f"{self.prefix}time/".encode()

    def time_now(self) -> bytes:
        """Cluster time."""
        return f"{self.prefix}time/now".encode()

    def time_doubt(self) -> bytes:
        """Why cluster time may be wrong."""
        return f"{self.prefix}time/doubt".encode()

    def suspicion(self, node_id: str, by: str) -> bytes:
        """The key of one node's suspicion of another; of itself, its answer."""
        return f"{self.prefix}suspicion/{node_id}/{by}".encode()

    def suspicions(self) -> bytes:
        """Prefix of all that nodes say of each other's silence."""
        return f"{self.prefix}suspicion/".encode()

    def head_end(self, name: str) -> bytes:
        """A head end that there is."""
        return f"{self.prefix}head-end/{name}".encode()

    def head_ends(self) -> bytes:
        """Prefix of all head ends."""
        return f"{self.prefix}head-end/".encode()

    def record(self, kind: Kind, record_id: str) -> bytes:
        """A record of the registry, or one that belongs to it."""
        return f"{self.prefix}{_ROOMS[kind]}{record_id}".encode()

    def records(self, kind: Kind) -> bytes:
        """Prefix of all records of a kind."""
        return f"{self.prefix}{_ROOMS[kind]}".encode()

    def due(self, at: int, meter_id: str) -> bytes:
        """An instant at which a meter must be looked at again."""
        return self.record(Kind.DUE, f"{at:013d}/{meter_id}")

    def outboxes_of(self, shard: int, meter_id: str) -> bytes:
        """Prefix of the deliveries owed to one meter."""
        return f"{self.prefix}outbox/{shard:04d}/{meter_id}/".encode()

    def registry(self) -> bytes:
        """Prefix of the registry."""
        return f"{self.prefix}registry/".encode()

    def parse_registry(self, key: bytes) -> tuple[str, str]:
        """Return the kind of a registry record and its id."""
        kind, record_id = key.decode().removeprefix(f"{self.prefix}registry/").split("/", 1)
        return kind, record_id

    def ceiling(self, participant_id: str) -> bytes:
        """How much of a seller's hour the nodes have drawn."""
        return f"{self.prefix}ceiling/{participant_id}".encode()

    def ceilings(self) -> bytes:
        """Prefix of what is drawn of every seller's hour."""
        return f"{self.prefix}ceiling/".encode()

    def audit_anchor(self, file: str) -> bytes:
        """How far an audit file goes."""
        return f"{self.prefix}trail/{file}".encode()

    def parse_audit_anchor(self, key: bytes) -> str:
        """Return the name of an audit file."""
        return key.decode().removeprefix(f"{self.prefix}trail/")

    def configs(self) -> bytes:
        """Prefix of what makes this ledger what it is."""
        return f"{self.prefix}config/".encode()

    def ledger(self) -> bytes:
        """Which ledger this is."""
        return f"{self.prefix}config/ledger".encode()

    def agreed(self) -> bytes:
        """The settings that must be alike at every node."""
        return f"{self.prefix}config/agreed".encode()
