"""commit_until_known: sends a transaction until etcd has said what became of it. No other loop sends a write again.

Whoever calls it says by what the transaction is safe to send again: its compares fail once it was carried out, or
carrying it out twice is the same as once.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from etcdpb import rpc_pb2 as pb

from cluster.etcd import ops
from cluster.etcd.client import EtcdClient, EtcdReadDenied, EtcdRefused, EtcdUnknown, EtcdUnreachable
from core.domain.errors import LedgerUnavailable, OutcomeUnknown
from core.ports.clock import Clock

log = logging.getLogger(__name__)

_RETRY_AFTER_S = 0.05


@dataclass(frozen=True, slots=True)
class OutcomeKnown:
    """etcd has answered, at `revision`. `resent`: an earlier sending had no answer, and may be what was carried out."""

    reply: pb.TxnResponse
    revision: int
    resent: bool


@dataclass(frozen=True, slots=True)
class NotWritten:
    """Nothing was written, and nothing of it is under way: every sending was refused, or never left."""

    error: EtcdUnreachable | EtcdRefused

    @property
    def malformed(self) -> bool:
        """True if etcd will refuse this very transaction for ever, but not others."""
        return isinstance(self.error, EtcdRefused) and self.error.malformed


@dataclass(frozen=True, slots=True)
class NotKnown:
    """A sending had no answer, and time is up: it may have been carried out, or may yet be."""

    error: EtcdUnreachable | EtcdRefused | EtcdUnknown


Settled = OutcomeKnown | NotWritten | NotKnown


async def commit_until_known(
    client: EtcdClient, clock: Clock, txn: pb.TxnRequest, *, until: float, resent: bool = False
) -> Settled:
    """Send `txn` until etcd has said what became of it, or `clock` is past `until` (monotonic seconds).

    A refusal settles only what was never sent without an answer before: what has left may still be carried out,
    whatever etcd says of a later sending. `resent` says that this is so from the start.
    """
    while True:
        try:
            reply = await client.txn(txn)
        except (EtcdRefused, EtcdUnreachable) as error:
            if not resent:
                return NotWritten(error)
            if isinstance(error, EtcdRefused) and error.malformed:
                return NotKnown(error)
            failed: EtcdRefused | EtcdUnreachable | EtcdUnknown = error
        except EtcdUnknown as error:
            log.warning("a write's outcome is unknown; it is sent again", extra={"error": str(error)})
            resent, failed = True, error
        else:
            return OutcomeKnown(reply, reply.header.revision, resent)
        if clock.monotonic() >= until:
            return NotKnown(failed)
        await asyncio.sleep(_RETRY_AFTER_S)


async def commit_or_raise(client: EtcdClient, clock: Clock, txn: pb.TxnRequest, *, resolve_s: float) -> OutcomeKnown:
    """Send `txn` until etcd has said what became of it, for at most `resolve_s` seconds; return what etcd said.

    Raises:
        LedgerUnavailable: nothing was written, and nothing of it is under way.
        OutcomeUnknown: only a read can tell.
    """
    settled = await commit_until_known(client, clock, txn, until=clock.monotonic() + resolve_s)
    if not isinstance(settled, OutcomeKnown):
        raise not_done(settled) from settled.error
    return settled


async def commit_each(
    client: EtcdClient, clock: Clock, children: Sequence[pb.TxnRequest], *, until: float, resent: bool = False
) -> list[Settled]:
    """Send `children` as one transaction, each winning or losing alone; return what became of each, in order.

    If etcd will not have the group for what one of them is, each half is sent for itself, so that a bad one does not
    sink its neighbours.
    """
    if not children:
        return []
    settled = await commit_until_known(client, clock, ops.group(children), until=until, resent=resent)
    if isinstance(settled, OutcomeKnown):
        return [OutcomeKnown(op.response_txn, settled.revision, settled.resent) for op in settled.reply.responses]
    malformed = isinstance(settled.error, EtcdRefused) and settled.error.malformed
    if malformed and len(children) > 1:
        middle, unsure = len(children) // 2, isinstance(settled, NotKnown)
        first = await commit_each(client, clock, children[:middle], until=until, resent=unsure)
        return first + await commit_each(client, clock, children[middle:], until=until, resent=unsure)
    return [settled for _ in children]


def not_done(settled: NotWritten | NotKnown) -> LedgerUnavailable | OutcomeUnknown:
    """Return the error that says what is known of a write that has no answer."""
    match settled:
        case NotKnown():
            return OutcomeUnknown("the ledger did not say whether this was written; repeat the same request")
        case NotWritten(error=EtcdUnreachable()):
            return LedgerUnavailable("the ledger cannot be reached; nothing was written")
        case _:
            log.error("etcd refuses a write", extra={"error": str(settled.error), "malformed": settled.malformed})
            told = "this now; tell the operator if it stays so" if settled.malformed else "writes now"
            return LedgerUnavailable(f"the ledger takes no {told}; nothing was written")


def not_read(error: EtcdUnreachable) -> LedgerUnavailable:
    """Return the error that says why a read had no answer."""
    if isinstance(error, EtcdReadDenied):
        return LedgerUnavailable("the ledger does not let this node read; ask another, and tell the operator")
    return LedgerUnavailable("the ledger cannot be reached")
