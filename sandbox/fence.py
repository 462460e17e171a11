"""The head end's fence: refuses messages of an owner that was replaced, and messages that come too late."""

from dataclasses import dataclass
from datetime import UTC, datetime

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from headend.v1 import head_end_service_pb2 as pb

from sandbox.store import Store

_DOMAIN = "headend.v1"


@dataclass(frozen=True, slots=True)
class Stale:
    """Why a message is stale, as headend.v1.StaleReason names it, and the fact that goes with it."""

    reason: str
    fact: tuple[str, str]

    def status(self) -> grpc.Status:
        """Return the status that says so."""
        info = error_details_pb2.ErrorInfo(reason=self.reason, domain=_DOMAIN, metadata=dict([self.fact]))
        detail = any_pb2.Any()
        detail.Pack(info)
        status = status_pb2.Status(
            code=code_pb2.FAILED_PRECONDITION, message=f"stale: {self.reason.lower()}", details=[detail]
        )
        return rpc_status.to_status(status)


class Fence:
    """Remembers, on disk, the highest epoch accepted for each meter, and until when each message may be carried."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._epochs: dict[str, int] = dict(store.read("SELECT meter_id, epoch FROM fences"))
        self._not_after_ms: dict[str, int] = dict(store.read("SELECT message_id, not_after_ms FROM limits"))

    def stale(self, message: pb.SendAddCreditRequest) -> Stale | None:
        """Return why a message may not be accepted; None if it may."""
        highest = self._epochs.get(message.meter_id, 0)
        if message.owner_epoch < highest:
            return Stale("EARLIER_OWNER", ("highest_epoch", str(highest)))
        now_ms = _now_ms()
        if message.HasField("not_after") and now_ms > message.not_after.ToMilliseconds():
            return Stale("TOO_LATE", ("now_ms", str(now_ms)))
        return None

    def accept(self, message: pb.SendAddCreditRequest) -> None:
        """Remember an accepted message; on disk when the store is flushed next."""
        if message.owner_epoch > self._epochs.get(message.meter_id, 0):
            self._epochs[message.meter_id] = message.owner_epoch
            self._store.queue("INSERT OR REPLACE INTO fences VALUES (?, ?)", message.meter_id, message.owner_epoch)
        if message.HasField("not_after"):
            not_after_ms = message.not_after.ToMilliseconds()
            self._not_after_ms[message.message_id] = not_after_ms
            self._store.queue("INSERT OR REPLACE INTO limits VALUES (?, ?)", message.message_id, not_after_ms)

    def too_late(self, message: pb.SendAddCreditRequest) -> bool:
        """Return whether an accepted message may not be begun to be carried any more."""
        not_after_ms = self._not_after_ms.get(message.message_id)
        return not_after_ms is not None and _now_ms() > not_after_ms


def _now_ms() -> int:
    return int(datetime.now(tz=UTC).timestamp() * 1000)  # noqa: TID251  # the sandbox shares no clock with the service
