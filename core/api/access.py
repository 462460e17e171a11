"""ACCESS: who may call each method of a node at all, and with how many bytes. What is whose, the flows look at.

A method without a row is served to nobody.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Final

from core.access.roles import KEEPERS, OPERATORS, PSPS, READERS, SUPPLIERS, require_role
from core.domain.errors import OperatorOnly, UnknownCaller
from core.domain.participant import NODE_URI, Principal, Role


class Noted(Enum):
    """Which decisions about a call the audit log gets from the interceptor.

    Every read of personal data and every look at a code's digits is one: whatever a method does not note itself.
    """

    EVERY = auto()
    # The method notes its own, with the records they are based on. The rest is left: what is refused before it comes to
    # one, and what is shown, or answered as it was before, without one.
    REFUSALS = auto()
    # A look at health, at descriptors, a beat: no decision about anybody's money or data.
    NONE = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who may call a method, and how.

    Attributes:
        roles: Participants of these may; none, if only nodes may.
        bytes_max: Of one request, as it comes.
        noted: What is noted of it.
        nodes: Other nodes of the cluster may.
        barred: Who is suspended, or has left, may too: it learns what became of its sales. The method does the rest.
        starting: Answered also before the registry, which knows participants, has been read.
        sells: A request may be a sale; its refusal says what it proves about that.
        operators_only: The refusal of others says so.
        lasts: It has no end by itself, and is counted apart from calls that have.
        at_once_max: Of one participant under way at once, where they cost much; 0 for what the configuration says.
    """

    roles: frozenset[Role]
    bytes_max: int = 16_384
    noted: Noted = Noted.EVERY
    nodes: bool = False
    barred: bool = False
    starting: bool = False
    sells: bool = False
    operators_only: bool = False
    lasts: bool = False
    at_once_max: int = 0

    def check_role(self, principal: Principal) -> None:
        """Return if the caller's role is one of those that may.

        Raises:
            RoleNotAllowed, OperatorOnly: another one may.
            UnknownCaller: only nodes may.
        """
        if not self.roles:
            raise UnknownCaller(f"only nodes may ask this: their certificate has a SAN URI that begins with {NODE_URI}")
        if self.operators_only and principal.role not in self.roles:
            raise OperatorOnly("only a participant with the role operator may do this")
        require_role(principal, self.roles)


_EVERYBODY: Final = frozenset(Role)
# Whoever sold may always learn what became of it.
_SALE: Final = Access(roles=_EVERYBODY, bytes_max=8192, noted=Noted.REFUSALS, barred=True, sells=True)
_KEEP: Final = Access(roles=KEEPERS)
_READ: Final = Access(roles=READERS, bytes_max=4096)
_LIST: Final = Access(roles=READERS, bytes_max=4096, at_once_max=4)
_OPERATE: Final = Access(roles=OPERATORS, bytes_max=32_768)
_ADMINISTER: Final = Access(roles=OPERATORS, bytes_max=4096, operators_only=True)
_HEALTH: Final = Access(
    roles=_EVERYBODY, bytes_max=1024, noted=Noted.NONE, nodes=True, barred=True, starting=True
)  # fmt: skip

_TOP_UP: Final = {
    "IssueUtrn": _SALE,
    "TopUp": _SALE,
    "DeliverVend": _SALE,
    "GetVend": Access(roles=_EVERYBODY, bytes_max=4096, noted=Noted.REFUSALS, barred=True),
    "CheckEligibility": Access(roles=_EVERYBODY, bytes_max=4096, noted=Noted.REFUSALS),
    "ListOpenCases": _LIST,
    "SettleDelivery": _KEEP,
}
_PARTICIPANTS: Final = {
    "AddParticipant": _OPERATE,
    "SetIdentities": _OPERATE,
    "RevokeCertificates": _OPERATE,
    "SetSupplierKey": _OPERATE,
    "SetParticipantStatus": _OPERATE,
    "SetCeiling": _OPERATE,
    "SetProfile": Access(roles=KEEPERS, bytes_max=32_768),
    "CancelProfile": _KEEP,
    "GetParticipant": Access(roles=_EVERYBODY, bytes_max=4096),
    "ListParticipants": Access(roles=READERS - SUPPLIERS, bytes_max=4096, at_once_max=4),
}
_METER_MODELS: Final = {
    "SetMeterModel": _OPERATE,
    "ListMeterModels": _LIST,
}
_METERS: Final = {
    "AddMeter": _KEEP,
    "ChangeMeter": _KEEP,
    "ChangeSupplier": _OPERATE,
    "ChangeTenant": _KEEP,
    "ExchangeMeter": _KEEP,
    "EndMeter": _KEEP,
    "CancelChange": _KEEP,
    # With the codes that are not spent.
    "TransferCounters": Access(roles=KEEPERS, bytes_max=32_768),
    "RecordBalance": _KEEP,
    "GetMeter": _READ,
    "ListMeters": _LIST,
    "ListSellers": _LIST,
    "ListRegistrationChanges": _LIST,
}
_PANS: Final = {
    "AssignPan": _KEEP,
    "ReplacePan": _KEEP,
    "SetPanBlocked": _KEEP,
    "RepointPan": _KEEP,
    "CancelPan": _KEEP,
    "GetPan": _READ,
    "ListPans": _LIST,
    # A thousand claims.
    "ReconcilePans": Access(roles=READERS, bytes_max=131_072, noted=Noted.REFUSALS, at_once_max=2),
}
_REGISTRY: Final = {
    # A thousand lines, appointments with their evidence among them.
    "LoadRecords": Access(roles=KEEPERS, bytes_max=2_097_152, noted=Noted.REFUSALS, at_once_max=4),
}
_APPOINTMENTS: Final = {
    "Appoint": Access(roles=SUPPLIERS),
    "AcceptAppointment": Access(roles=PSPS),
    "SuspendAppointment": _KEEP,
    "EndAppointment": Access(roles=KEEPERS | PSPS),
    "GetAppointments": Access(roles=READERS | PSPS, bytes_max=4096),
    "ListAppointments": Access(roles=READERS | PSPS, bytes_max=4096, at_once_max=4),
}
_CREDIT: Final = {
    "RequestCredit": Access(roles=SUPPLIERS),
    "DecideCredit": Access(roles=SUPPLIERS, sells=True),
    "ListCredits": _LIST,
}
_ADMIN: Final = dict.fromkeys(
    (
        "GetClusterStatus", "SetDrain", "ForgetNode", "ForgetHeadEnd", "AcceptClusterTime", "ListApprovals",
        "ApproveOperation", "WithdrawOperation",
    ),
    _ADMINISTER,
)  # fmt: skip
_SERVICES: Final[Mapping[str, Mapping[str, Access]]] = {
    "utrn.v1.TopUpService": _TOP_UP,
    "utrn.v1.ParticipantService": _PARTICIPANTS,
    "utrn.v1.MeterModelService": _METER_MODELS,
    "utrn.v1.MeterService": _METERS,
    "utrn.v1.PanService": _PANS,
    "utrn.v1.RegistryService": _REGISTRY,
    "utrn.v1.AppointmentService": _APPOINTMENTS,
    "utrn.v1.CreditService": _CREDIT,
    "utrn.admin.v1.AdminService": _ADMIN,
    "utrn.peer.v1.PeerService": {
        "Heartbeat": Access(roles=frozenset(), bytes_max=1024, noted=Noted.NONE, nodes=True, lasts=True),
    },
    "grpc.health.v1.Health": {"Check": _HEALTH, "Watch": replace(_HEALTH, lasts=True), "List": _HEALTH},
    "grpc.reflection.v1alpha.ServerReflection": {
        "ServerReflectionInfo": Access(roles=_EVERYBODY, bytes_max=4096, noted=Noted.NONE, at_once_max=4),
    },
}
# By the path of a call, as "/utrn.v1.TopUpService/TopUp".
ACCESS: Final[Mapping[str, Access]] = {
    f"/{service}/{method}": access for service, rows in _SERVICES.items() for method, access in rows.items()
}
