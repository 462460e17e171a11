"""A node's flows of the market over any etcd, with a clock driven by hand; two of them over one etcd make a market."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import cast

from cluster.codec.registry import name_of
from cluster.etcd.keys import Keys
from cluster.ledger.ceilings import EtcdCeilings
from cluster.ledger.outbox import EtcdOutbox
from cluster.ledger.vends import EtcdLedger
from cluster.registry.replica import EtcdRegistryReplica
from cluster.registry.store import EtcdRegistryStore
from cluster.timekeeping.fence import TimeFence
from core.access.approvals import ConsentOfLedger, Consents
from core.access.certificates import Authority
from core.assembly.administration import Administration
from core.assembly.issuing import Issuing
from core.assembly.ports import Ports
from core.domain.effective_dated import ms_of
from core.domain.meter import MeterId, Pan
from core.domain.money import Pence
from core.domain.participant import Participant, ParticipantId, ParticipantStatus, Principal, Profile, Role, SupplierKey
from core.domain.record import Ref
from core.domain.transaction_id import TransactionId
from core.domain.vend import Channel, Operation, Sale
from core.issuing.config import FlowConfig
from core.issuing.recent_vends import Issued
from core.ports.ownership import Ownership
from core.ports.registry import RegistryRecord, RegistryWrite
from core.registry.bulk_load import LoadRecords
from core.registry.meters import new_meter
from tests.fakes.clock import HandClock
from tests.fakes.signer import FakeSigner
from tests.support.answers import memory
from tests.support.etcd import Store
from tests.support.head_ends import known_head_ends
from tests.support.lines import RULE
from tests.support.market import KeptAuditLog
from tests.support.patience import PATIENCE_S
from tests.support.vends import (
    APPOINTMENTS,
    POINT,
    PSP,
    SUPPLIER,
    always,
    card,
    identity_history,
    meter,
    new_id,
    new_meter_id,
)

# The scalar of the support's point: the first originator of tests/vectors/gbcs.json.
SCALAR = 0xC92F51B1766E4AAA9167AB94B39D9DEB1B8B90897C0C52E0488E2C0916C98F39
GAINING_ID = ParticipantId("supplier-gaining")
GAINING = replace(
    SUPPLIER,
    participant_id=GAINING_ID,
    identity_history=identity_history("Gaining", "supplier-gaining", "supplier-gaining-two"),
    supplier_key=SupplierKey(originator_id="90b3d51f30010009", key_id="01", public_point=POINT),
    profiles=always(Profile()),
)
OPERATOR = Participant(
    participant_id=ParticipantId("operator"), role=Role.OPERATOR, identity_history=identity_history("Ops", "operator"),
    statuses=always(ParticipantStatus.ACTIVE),
)  # fmt: skip


def as_(participant: Participant, certificate: int = 0) -> Principal:
    """Return who calls as `participant`, by one of its certificates."""
    return Principal(participant, participant.identities[certificate])


@dataclass
class MarketNode:
    """Everything a node does about the market. `registry` follows etcd only while `following` runs."""

    store: Store
    clock: HandClock
    ceiling_pence: int = FlowConfig().ceiling_pence

    def __post_init__(self) -> None:
        """Wire it as the composition root does."""
        # Who asks for a second operator says so: a test of its own.
        self.consents: Consents = ConsentOfLedger()
        # The names that this node knows; a test may change them, or take its knowledge away.
        self.head_ends: frozenset[str] | None = known_head_ends()
        client, config, clock = self.store.client, self.store.config, self.clock
        self.registry = EtcdRegistryReplica(client, config)
        self.records = EtcdRegistryStore(client, config, clock)
        self.ledger = EtcdLedger(client, config, clock)
        self.outbox = EtcdOutbox(client, config, clock)
        self.audit_log = KeptAuditLog()
        ceilings = EtcdCeilings(client, config, clock, default_pence=self.ceiling_pence, node_id=str(id(self)))
        ports = Ports(
            clock=clock, signer=FakeSigner({"01": SCALAR}), ledger=self.ledger, outbox=self.outbox,
            ownership=cast("Ownership", None), registry=self.registry, store=self.records, audit_log=self.audit_log,
            ceilings=ceilings, head_ends={}, head_end_names=lambda: self.head_ends,
        )  # fmt: skip
        self.answers = memory(100)
        issuing = Issuing(
            ports=ports, config=FlowConfig(in_flight_max=1000, pan=RULE), node_id="n", answers=self.answers
        )
        self.issuing = issuing
        self.turn, self.authorize, self.counters, self.line = (
            issuing.turn, issuing.authorize, issuing.counters, issuing.line
        )  # fmt: skip
        self.ceilings, self.issue, self.find, self.send = issuing.ceilings, issuing.issue, issuing.find, issuing.send
        admin = Administration(issuing=issuing, consents=self.consents, authority=no_authority)
        self.administration = admin
        self.cases, self.meters, self.exchange, self.hand_over = (
            admin.cases, admin.meters, admin.exchange, admin.hand_over
        )  # fmt: skip
        self.pans, self.parties, self.credit = admin.pans, admin.parties, admin.credit
        self.reconcile, self.view = admin.reconcile, admin.view

    def load(self, roots: bytes) -> LoadRecords:
        """Return the bulk load, with appointments verified under `roots`."""
        return self.under(roots).load

    def under(self, roots: bytes) -> Administration:
        """Return the administration, with appointments verified under `roots`."""
        return replace(self.administration, authority=lambda: Authority.of(roots))

    @asynccontextmanager
    async def running(self, *, following: bool = True, committing: bool = True) -> AsyncIterator[None]:
        """Follow the registry and commit, until left.

        Args:
            following: False: read the registry once, and hear nothing more.
            committing: False: what is asked for waits for ever.
        """
        async with asyncio.TaskGroup() as tasks:
            parts = [tasks.create_task(self.registry.run())]
            await self.registry.complete()
            if not following:
                parts.pop().cancel()
            if committing:
                parts += [tasks.create_task(self.line.run()), tasks.create_task(self.outbox.run())]
            try:
                yield
            finally:
                for part in parts:
                    part.cancel()

    async def seen(self, meter_id: MeterId, revision: int) -> None:
        """Return when the copy in memory has a meter at `revision` or later."""
        async with asyncio.timeout(PATIENCE_S):
            while (known := self.registry.meter(meter_id)) is None or known.revision < revision:  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    async def sell(
        self, who: Participant, pan: Pan, pence: int = 1000, *, transaction_id: TransactionId | None = None,
        operation: Operation = Operation.TOP_UP, repeat: bool = False,
    ) -> Issued:  # fmt: skip
        """Sell as `who`."""
        sale = Sale(
            participant_id=who.participant_id,
            transaction_id=transaction_id or new_id(self.clock.now()),
            operation=operation,
            pan=pan,
            amount=Pence(pence),
            channel=Channel.ONLINE,
        )
        return await self.issue(as_(who), sale, time_left_s=None, repeat=repeat)


async def put_all(node: MarketNode, records: Sequence[RegistryRecord]) -> None:
    """Write records as they are."""
    for record in records:
        ref = Ref(*name_of(record))
        assert await node.records.write(RegistryWrite(expect=[(ref, 0)], put=[record])) is not None


async def open_market(node: MarketNode, meters: int = 1) -> list[tuple[MeterId, Pan]]:
    """Write the time, two suppliers, an appointed PSP, and meters of the first one, each with a PAN."""
    await TimeFence(node.store.client, Keys(node.store.config.prefix), node.clock).reach(ms_of(node.clock.now()))
    await put_all(node, [SUPPLIER, GAINING, PSP, OPERATOR, APPOINTMENTS])
    made: list[tuple[MeterId, Pan]] = []
    for number in range(meters):
        one = meter(new_meter_id())
        pan = Pan(f"98260{number:03d}{int(one.meter_id[6:], 16):011d}")
        await put_all(node, [new_meter(one, SUPPLIER, one.effective_through), card(pan, one.meter_id)])
        made.append((one.meter_id, pan))
    return made


def at(node: MarketNode, seconds: float) -> int:
    """Return an instant so many seconds ahead of a node's clock, in milliseconds."""
    return ms_of(node.clock.now() + timedelta(seconds=seconds))


def no_authority() -> Authority:
    """Stand for the authority of callers where no appointment is signed."""
    raise AssertionError("no certificate is verified here")
