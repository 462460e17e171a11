"""Requests of a transaction, spelled once."""

from collections.abc import Sequence

from etcdpb import rpc_pb2 as pb


def put(key: bytes, value: bytes, *, lease: int = 0) -> pb.RequestOp:
    """Put a value."""
    return pb.RequestOp(request_put=pb.PutRequest(key=key, value=value, lease=lease))


def delete(key: bytes) -> pb.RequestOp:
    """Delete a key."""
    return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key))


def get(key: bytes) -> pb.RequestOp:
    """Read a key. Never with a revision: etcd must not read history inside a writing transaction."""
    return pb.RequestOp(request_range=pb.RangeRequest(key=key))


def nested(child: pb.TxnRequest) -> pb.RequestOp:
    """Make a transaction a part of another."""
    return pb.RequestOp(request_txn=child)


def got(reply: pb.TxnResponse) -> list[pb.KeyValue | None]:
    """Return what the reads of a transaction found, in order; None for a key that is not there."""
    return [
        op.response_range.kvs[0] if op.response_range.kvs else None
        for op in reply.responses
        if op.HasField("response_range")
    ]


def group(children: Sequence[pb.TxnRequest]) -> pb.TxnRequest:
    """Make one transaction of many, each of which wins or loses alone."""
    return pb.TxnRequest(success=[nested(child) for child in children])
