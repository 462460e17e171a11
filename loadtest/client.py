"""The till's side of utrn.v1 for Locust: synchronous stubs over gevent, with the policy of proto/service_config.json.

Every attempt is told to Locust and to the journal.
"""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from utrn.v1 import top_up_service_pb2 as pb
from utrn.v1 import top_up_service_pb2_grpc as rpc

from loadtest.journal import Journal

SERVICE_CONFIG = Path(__file__).parents[1] / "proto" / "service_config.json"
# What each reason says about the payment: the table that every caller reads.
OUTCOMES = Path(__file__).parents[1] / "proto" / "outcomes.json"
_TABLE = json.loads(OUTCOMES.read_text(encoding="utf-8"))
_PAUSE_FIRST_S, _PAUSE_MOST_S, _GIVE_UP_S = 0.05, 1.0, 60.0


@dataclass(frozen=True)
class Target:
    """Where the nodes are (address:port), and PEM files to reach them with."""

    nodes: tuple[str, ...]
    cert: Path
    key: Path
    ca: Path
    server_name: str = "localhost"

    def options(self) -> list[tuple[str, str | int]]:
        """Return the channel options that go with the policy."""
        return [
            ("grpc.service_config", json.dumps(json.loads(SERVICE_CONFIG.read_text(encoding="utf-8")))),
            # A connection whose packets vanish is given up, and no proxy of the environment is used.
            ("grpc.keepalive_time_ms", 10_000),
            ("grpc.keepalive_timeout_ms", 5_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.enable_http_proxy", 0),
            ("grpc.initial_reconnect_backoff_ms", 100),
            # Also how long one attempt to connect may take: a handshake takes a moment over a WAN, or on a busy host.
            ("grpc.min_reconnect_backoff_ms", 1000),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.ssl_target_name_override", self.server_name),
            ("grpc.default_authority", self.server_name),
        ]

    def channel(self) -> grpc.Channel:
        """Return a channel over all nodes.

        Raises:
            OSError: a certificate file cannot be read.
        """
        credentials = grpc.ssl_channel_credentials(self.ca.read_bytes(), self.key.read_bytes(), self.cert.read_bytes())
        return grpc.secure_channel("ipv4:" + ",".join(self.nodes), credentials, options=self.options())


class Caller:
    """One caller: sells with one id until there is an answer, and reports each step."""

    def __init__(self, channel: grpc.Channel, journal: Journal, report: Callable[..., None], name: str) -> None:
        """Take a channel, the journal, Locust's request event, and the caller's name in the journal."""
        self._stub = rpc.TopUpServiceStub(channel)
        self._journal = journal
        self._report = report
        self._name = name

    def sell(self, request: pb.TopUpRequest | pb.IssueUtrnRequest, *, attempt_s: float = 2.0) -> str | None:
        """Return the code's digest once there is an answer; None if it was refused, or nobody knows after a minute."""
        kind = "TopUp" if isinstance(request, pb.TopUpRequest) else "IssueUtrn"
        method: Any = getattr(self._stub, kind)
        self._journal.write("planned", caller=self._name, id=request.transaction_id, pence=request.amount_pence)
        began = time.perf_counter()
        pause_s = _PAUSE_FIRST_S
        while True:
            try:
                reply = method(request, timeout=attempt_s)
            except grpc.RpcError as error:
                self._journal.write("attempt", id=request.transaction_id, reason=reason_of(error))
                if not may_ask_again(error, repeat=request.repeat) or time.perf_counter() - began > _GIVE_UP_S:
                    self._tell(kind, began, error)
                    self._journal.write("failed", id=request.transaction_id, reason=reason_of(error))
                    return None
                request.repeat = True
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _PAUSE_MOST_S)
            else:
                # From the first attempt to the answer: what the consumer at the counter waits for.
                self._tell(kind, began, None)
                digest = digest_of(reply.code.utrn)
                self._journal.write("ok", id=request.transaction_id, code=digest, replayed=reply.replayed)
                return digest

    def send(self, transaction_id: str) -> None:
        """Ask for the delivery of a code that was issued."""
        self._once("DeliverVend", self._stub.DeliverVend, pb.DeliverVendRequest(transaction_id=transaction_id))

    def look(self, transaction_id: str) -> None:
        """Look a vend up."""
        self._once("GetVend", self._stub.GetVend, pb.GetVendRequest(transaction_id=transaction_id))

    def _once(self, kind: str, method: Any, request: Any) -> None:
        began = time.perf_counter()
        try:
            method(request, timeout=5.0)
        except grpc.RpcError as error:
            self._tell(kind, began, error)
        else:
            self._tell(kind, began, None)

    def _tell(self, kind: str, began: float, error: grpc.RpcError | None) -> None:
        self._report(
            request_type="grpc",
            name=kind,
            response_time=(time.perf_counter() - began) * 1000,
            response_length=0,
            exception=None if error is None else RuntimeError(reason_of(error)),
            context={},
        )


def digest_of(utrn: str) -> str:
    """Return what the journal keeps of a code: enough to compare, not enough to spend."""
    return hashlib.sha256(utrn.encode()).hexdigest()


def reason_of(error: Any) -> str:
    """Return the reason of a refusal: ErrorInfo's where there is one, else the status."""
    return str(_info_of(error).reason) or str(error.code().name)


def may_ask_again(error: Any, *, repeat: bool) -> bool:
    """Return whether asking for the same id again may bring a code: not after a final refusal, nor for an operator."""
    info = _info_of(error)
    ours = info.domain == _TABLE["domain"]
    if ours and info.metadata.get("final") == "fenced":
        return False
    says = _TABLE["reasons"].get(info.reason, {}).get("says") if ours else None
    return says in (None, "ASK_AGAIN") or (says == "NOT_SOLD" and repeat)


def _info_of(error: Any) -> Any:
    status = rpc_status.from_call(error)
    info = error_details_pb2.ErrorInfo()
    for detail in status.details if status is not None else ():
        if detail.Unpack(info):
            break
    return info
