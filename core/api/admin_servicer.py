"""AdminService: what operators see and do."""
# ruff: noqa: N802

from dataclasses import asdict, dataclass
from typing import Final

from google.protobuf import timestamp_pb2
from utrn.admin.v1 import admin_service_pb2 as pb
from utrn.admin.v1 import admin_service_pb2_grpc as rpc

from core.access.approvals import TwoPeople
from core.api.approval_request import asked_of
from core.api.authenticate import Authenticate
from core.api.change_messages import stamp
from core.api.paging import page_size, page_start, page_token
from core.api.status import Context
from core.domain.approval import Approval, parse_approval_id
from core.domain.errors import BadField, OperatorOnly
from core.domain.participant import Principal, Role
from core.operations.accept_cluster_time import AcceptTime
from core.operations.drain_node import DrainNode
from core.operations.forget_node import ForgetHeadEnd, ForgetNode
from core.ports.cluster_admin import Cluster

ADMIN_SERVICE: Final = "utrn.admin.v1.AdminService"


@dataclass(frozen=True, kw_only=True)
class AdminServicer(rpc.AdminServiceServicer):
    """The operators' service. What each method promises is written in admin_service.proto."""

    authenticate: Authenticate
    cluster: Cluster
    drain: DrainNode
    forget: ForgetNode
    forget_head_end: ForgetHeadEnd
    accept_time: AcceptTime
    two_people: TwoPeople

    async def GetClusterStatus(
        self, request: pb.GetClusterStatusRequest, context: Context
    ) -> pb.GetClusterStatusResponse:
        """Return the state of the cluster."""
        self._operator(context)
        status = await self.cluster.status()
        return pb.GetClusterStatusResponse(
            asked_node_id=status.asked,
            revision=status.revision,
            nodes=[pb.Node(**asdict(node)) for node in status.nodes],
            shards=[pb.Shard(**asdict(shard)) for shard in status.shards],
            etcd_members=[pb.EtcdMember(**asdict(member)) for member in status.members],
            head_ends=[pb.HeadEnd(**asdict(head_end)) for head_end in status.head_ends],
            reading=status.reading,
            ledger_problems=status.ledger_problems,
            ledger_full=status.ledger_full,
            time=pb.ClusterTime(**asdict(status.time)),
        )

    async def SetDrain(self, request: pb.SetDrainRequest, context: Context) -> pb.SetDrainResponse:
        """Drain a node, or end its drain."""
        principal = self._operator(context)
        _check_named(request.node_id)
        drain = await self.drain(principal, request.node_id, drained=request.drained)
        if drain is None:
            return pb.SetDrainResponse(drained=False)
        since = timestamp_pb2.Timestamp()
        since.FromDatetime(drain.since)
        return pb.SetDrainResponse(drained=True, since=since, by=drain.by)

    async def ForgetNode(self, request: pb.ForgetNodeRequest, context: Context) -> pb.ForgetNodeResponse:
        """Take a node off the roster."""
        self._operator(context)
        _check_named(request.node_id)
        await self.forget(request.node_id)
        return pb.ForgetNodeResponse()

    async def ForgetHeadEnd(self, request: pb.ForgetHeadEndRequest, context: Context) -> pb.ForgetHeadEndResponse:
        """Take the name of a head end away."""
        self._operator(context)
        if not request.name:
            raise BadField("name: a head end's name is needed", field="name")
        await self.forget_head_end(request.name)
        return pb.ForgetHeadEndResponse()

    async def AcceptClusterTime(
        self, request: pb.AcceptClusterTimeRequest, context: Context
    ) -> pb.AcceptClusterTimeResponse:
        """Set cluster time to the wall clocks, or say what that would do."""
        principal = self._operator(context)
        seconds = request.seconds if request.HasField("seconds") else None
        asked = asked_of("AcceptClusterTime", request, f"set cluster time to the wall clocks, {seconds} s ahead of it")
        return pb.AcceptClusterTimeResponse(**asdict(await self.accept_time(principal, seconds, asked=asked)))

    async def ListApprovals(self, request: pb.ListApprovalsRequest, context: Context) -> pb.ListApprovalsResponse:
        """List what needs two operators."""
        principal = self._operator(context)
        after, limit = page_start(request.page_token), page_size(request.page_size)
        found, more = await self.two_people.list_page(principal, after=after, limit=limit)
        approvals = [_approval(approval) for approval in found]
        return pb.ListApprovalsResponse(approvals=approvals, next_page_token=page_token(more))

    async def ApproveOperation(
        self, request: pb.ApproveOperationRequest, context: Context
    ) -> pb.ApproveOperationResponse:
        """Approve what another operator has asked for."""
        principal = self._operator(context)
        approval_id = parse_approval_id(request.approval_id, field="approval_id")
        return pb.ApproveOperationResponse(approval=_approval(await self.two_people.approve(principal, approval_id)))

    async def WithdrawOperation(
        self, request: pb.WithdrawOperationRequest, context: Context
    ) -> pb.WithdrawOperationResponse:
        """Withdraw what was asked for."""
        principal = self._operator(context)
        approval_id = parse_approval_id(request.approval_id, field="approval_id")
        return pb.WithdrawOperationResponse(approval=_approval(await self.two_people.withdraw(principal, approval_id)))

    def _operator(self, context: Context) -> Principal:
        principal = self.authenticate(context)
        if principal.participant.role is not Role.OPERATOR:
            raise OperatorOnly("only a participant with the role operator may do this")
        return principal


def _check_named(node_id: str) -> None:
    if not node_id:
        raise BadField("node_id: a node's name is needed", field="node_id")


def _approval(approval: Approval) -> pb.Approval:
    return pb.Approval(
        approval_id=approval.approval_id,
        method=approval.method,
        subject=approval.subject,
        state=pb.ApprovalState.ValueType(approval.state),
        asked_by=approval.asked_by,
        asked_at=stamp(approval.asked_at),
        not_before=stamp(approval.not_before),
        expires_at=stamp(approval.expires_at),
        decided_by=approval.decided_by,
        decided_at=stamp(approval.decided_at),
    )
