"""What the core asks of the world: the ports, together."""

from collections.abc import Mapping
from dataclasses import dataclass

from core.ports.audit_log import AuditLog
from core.ports.ceilings import CeilingLedger
from core.ports.clock import Clock
from core.ports.head_end import HeadEnd
from core.ports.head_ends import HeadEndNames
from core.ports.ledger import Ledger
from core.ports.outbox import Outbox
from core.ports.ownership import Ownership
from core.ports.registry import RegistryReplica, RegistryStore
from core.ports.signer import TokenSigner


@dataclass(frozen=True, kw_only=True)
class Ports:
    """What the core asks of the world. Drills put their own between the core and the real ones."""

    clock: Clock
    signer: TokenSigner
    ledger: Ledger
    outbox: Outbox
    ownership: Ownership
    registry: RegistryReplica
    store: RegistryStore
    audit_log: AuditLog
    ceilings: CeilingLedger
    head_ends: Mapping[str, HeadEnd]
    head_end_names: HeadEndNames
