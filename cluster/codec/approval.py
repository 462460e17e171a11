"""Approvals as they are stored, and what a consent adds to a transaction."""

from etcdpb import rpc_pb2 as etcd
from utrn.store.v1 import records_pb2 as pb

from cluster.codec.vend import SCHEMA, read
from cluster.etcd import ops, preconditions
from cluster.etcd.keys import Keys
from core.domain.approval import Approval, ApprovalState, Consent
from core.domain.effective_dated import Ms
from core.domain.participant import ParticipantId
from core.domain.record import Kind


def approval_record(approval: Approval) -> pb.ApprovalRecord:
    """Return an approval as it is stored."""
    return pb.ApprovalRecord(
        schema=SCHEMA,
        approval_id=approval.approval_id,
        method=approval.method,
        subject=approval.subject,
        asked_by=approval.asked_by,
        asked_identity=approval.asked_identity,
        asked_at=approval.asked_at,
        not_before=approval.not_before,
        expires_at=approval.expires_at,
        state=approval.state,
        decided_by=approval.decided_by,
        decided_identity=approval.decided_identity,
        decided_at=approval.decided_at or 0,
    )


def approval_of(value: bytes) -> Approval:
    """Return an approval from its stored form."""
    record = read(pb.ApprovalRecord(), value)
    return Approval(
        approval_id=record.approval_id,
        method=record.method,
        subject=record.subject,
        asked_by=ParticipantId(record.asked_by),
        asked_identity=record.asked_identity,
        asked_at=Ms(record.asked_at),
        not_before=Ms(record.not_before),
        expires_at=Ms(record.expires_at),
        state=ApprovalState(record.state),
        decided_by=record.decided_by,
        decided_identity=record.decided_identity,
        decided_at=Ms(record.decided_at) if record.decided_at else None,
    )


def consented(keys: Keys, consent: Consent) -> tuple[list[etcd.Compare], list[etcd.RequestOp]]:
    """Return what a transaction compares and puts besides, so that it is carried out once and with consent only."""
    compare: list[etcd.Compare] = []
    for ref, revision in consent.expect:
        compare += preconditions.consent_unmoved(keys.record(ref.kind, ref.id), revision)
    if consent.not_before:
        compare += preconditions.time_reached(keys.time_now(), consent.not_before)
    puts = [
        ops.put(keys.record(Kind.APPROVAL, one.approval_id), approval_record(one).SerializeToString(deterministic=True))
        for one in consent.put
    ]
    return compare, puts
