"""Who may register a meter or PAN that nobody has registered, and how many of them at once.

A free id belongs to whoever registers it, so the operators' registration feed should be first. A supplier registers
itself only what the configuration lets it, and no more of it than its quota.
"""

from dataclasses import dataclass

from core.access.quota import Quota
from core.domain.errors import OperatorOnly
from core.domain.participant import Principal, Role
from core.domain.record import Kind
from core.ports.clock import Clock

# What a configuration names, and the records it means.
REGISTRABLE = {"meters": Kind.METER, "pans": Kind.PAN}


@dataclass(frozen=True, slots=True)
class Registrations:
    """The rule for records that are new; without a quota it lets anybody register any number.

    Attributes:
        quota: What each supplier may register at once; None where the writer is no participant.
        open_to_suppliers: Kinds that a supplier may register itself.
    """

    quota: Quota | None = None
    open_to_suppliers: frozenset[Kind] = frozenset()

    def refuse(self, principal: Principal, kind: Kind) -> None:
        """Refuse whoever may not register a new record of this kind.

        Raises:
            OperatorOnly: a supplier, where only the registration feed registers.
        """
        if self.quota is None or principal.role is not Role.SUPPLIER or kind in self.open_to_suppliers:
            return
        raise OperatorOnly(
            f"a new {kind.value} is registered by an operator, who loads the registration feed; "
            "ask for it there (flow.suppliers_register)"
        )

    def count(self, principal: Principal, many: int) -> None:
        """Take so many new records from a supplier's quota; operators, and so the feed, have no limit.

        Raises:
            Overloaded: the supplier has none left now.
        """
        if self.quota is not None and principal.role is Role.SUPPLIER:
            self.quota.take(principal.participant_id, many)


# For whoever writes straight into etcd, before there is a participant.
UNLIMITED = Registrations()


def registrations(
    clock: Clock, *, burst: int, per_minute: int, suppliers_register: frozenset[str] | tuple[str, ...]
) -> Registrations:
    """Return the rule of a node.

    Args:
        clock: Tells the time that gives the quota back.
        burst: Meters and PANs that one supplier may register at once.
        per_minute: And a minute, once the burst is used up.
        suppliers_register: Of "meters" and "pans", what a supplier may register itself.
    """
    refusal = "this supplier has registered so much lately that more has to wait; repeat later, or ask an operator"
    quota = Quota(clock, burst=burst, per_minute=per_minute, refusal=refusal)
    return Registrations(quota, frozenset(REGISTRABLE[name] for name in suppliers_register))
