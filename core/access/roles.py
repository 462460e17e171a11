"""Who may ask for what in the market: roles, and whose record it is. The one table of it."""

from typing import Final

from core.domain.errors import NotYours, RoleNotAllowed
from core.domain.participant import ParticipantId, Principal, Role

OPERATORS: Final = frozenset({Role.OPERATOR})
SUPPLIERS: Final = frozenset({Role.SUPPLIER})
SELLERS: Final = frozenset({Role.PSP, Role.SUPPLIER})
PSPS: Final = frozenset({Role.PSP})
KEEPERS: Final = frozenset({Role.OPERATOR, Role.SUPPLIER})
READERS: Final = frozenset({Role.OPERATOR, Role.HELPDESK, Role.AUDITOR, Role.SUPPLIER})


def require_role(principal: Principal, roles: frozenset[Role]) -> None:
    """Return if the caller has one of `roles`; raise RoleNotAllowed if not."""
    if principal.role not in roles:
        wanted = ", ".join(sorted(role.name.lower() for role in roles))
        raise RoleNotAllowed(f"only a participant with the role {wanted} may do this", role=principal.role.name.lower())


def require_owner(principal: Principal, supplier_id: ParticipantId) -> None:
    """Return if a record of that supplier is the caller's to see and change; raise NotYours if not."""
    if principal.role is Role.SUPPLIER and principal.participant_id != supplier_id:
        raise NotYours("this belongs to another supplier")
    if principal.role is Role.PSP:
        raise NotYours("this belongs to a supplier")
