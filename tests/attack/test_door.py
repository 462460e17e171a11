"""Strangers at the door: certificates that are odd, weak, expired, revoked, or of the wrong authority."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from etcdpb import rpc_pb2 as etcd
from etcdpb import rpc_pb2_grpc as etcd_rpc
from utrn.peer.v1 import peer_service_pb2 as peer

from app.devstack.ca import CertPaths, DevCa, node_uri, participant_uri
from app.devstack.files import OPERATOR, PSP
from app.devstack.stack import DevStack
from core.gateways.system_clock import SystemClock
from tests.support.crooked import SERVER, Issuer, made
from tests.support.raw import Answer, raw_call, raw_channel, raw_stream

pytestmark = [pytest.mark.real]
LIST, BEATS = "/utrn.v1.ParticipantService/ListParticipants", "/utrn.peer.v1.PeerService/Heartbeat"
OPERATOR_URI = participant_uri(OPERATOR)
BEAT = peer.HeartbeatRequest(node_id="node-a").SerializeToString()


def presented(stack: DevStack, name: str, *uris: str, ca: DevCa | None = None, **how: Any) -> CertPaths:
    """Return a certificate of the callers' authority, or of `ca`, made so."""
    one = made(Issuer.of(ca or stack.pki.callers), *uris, **how)
    return one.write(stack.folder / "pki", name, stack.pki.nodes.ca_file)


async def answer(stack: DevStack, certs: CertPaths) -> Answer:
    """Return what a list of everybody is answered: the operator's to see."""
    async with raw_channel(stack, certs=certs) as channel:
        return await raw_call(channel, LIST, b"")


@asynccontextmanager
async def port_that_reads_as_grpc_does(stack: DevStack) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A port with the node's certificate that keeps the URI which gRPC itself gives for whoever calls."""
    uris: list[bytes] = []

    async def keep(_: bytes, context: Any) -> bytes:
        uris.extend(context.auth_context()["peer_uri"])
        return b""

    node = stack.pki.node("node-a")
    pair = (node.key.read_bytes(), node.cert.read_bytes())
    server = grpc.aio.server()
    handlers: dict[str, Any] = {"ListParticipants": grpc.unary_unary_rpc_method_handler(keep)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("utrn.v1.ParticipantService", handlers),))
    credentials = grpc.ssl_server_credentials([pair], stack.pki.callers.ca_file.read_bytes(), require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield f"127.0.0.1:{port}", uris
    finally:
        await server.stop(None)


async def test_a_name_with_a_nul_is_not_the_name_before_it(attacked: DevStack, monkeypatch: pytest.MonkeyPatch) -> None:
    certs = presented(attacked, "nul", f"{OPERATOR_URI}\0.x")
    assert (await answer(attacked, certs)).reason == "CERTIFICATE_REFUSED"
    assert (await answer(attacked, attacked.certs(OPERATOR))).code is grpc.StatusCode.OK
    # The control: what gRPC hands on is the operator's name.
    async with port_that_reads_as_grpc_does(attacked) as (target, uris):
        monkeypatch.setattr(attacked, "node_target", lambda _: target)
        await answer(attacked, certs)
    assert uris == [OPERATOR_URI.encode()]


async def test_who_is_named_oddly_or_by_a_weak_certificate_gets_no_answer(attacked: DevStack) -> None:
    weak = rsa.generate_private_key(65537, 1024)  # noqa: S505  # that is the point
    now = SystemClock().now()
    for name, certs in {
        "two": presented(attacked, "two", OPERATOR_URI, participant_uri(PSP)),
        "none": presented(attacked, "none"),
        "no-use": presented(attacked, "no-use", OPERATOR_URI, usages=()),
        "server": presented(attacked, "server", OPERATOR_URI, usages=SERVER),
        "rsa-1024": presented(attacked, "rsa-1024", OPERATOR_URI, key=weak),
        "nodes": presented(attacked, "nodes", OPERATOR_URI, ca=attacked.pki.nodes),
        "etcd": presented(attacked, "etcd-op", OPERATOR_URI, ca=attacked.pki.etcd),
        "expired": presented(attacked, "past", OPERATOR_URI, starts=now - timedelta(days=2), ends=now - timedelta(1)),
    }.items():
        got = await answer(attacked, certs)
        refused_by_tls = got.code is grpc.StatusCode.UNAVAILABLE
        assert refused_by_tls or got.reason == "CERTIFICATE_REFUSED", (name, got)
        assert got.bodies == ()


async def test_a_caller_is_no_node_and_a_node_no_caller(attacked: DevStack) -> None:
    """A node URI of the callers' authority hears no beats; a node is nobody to the services of callers."""
    forged = presented(attacked, "forged-node", node_uri("node-a"))
    async with raw_channel(attacked, certs=forged) as channel:
        got = await raw_stream(channel, BEATS, [BEAT], most=1)
        assert got.reason == "CERTIFICATE_REFUSED", got
    async with raw_channel(attacked, OPERATOR) as channel:
        assert (await raw_stream(channel, BEATS, [BEAT], most=1)).reason == "UNKNOWN_CALLER"
    async with raw_channel(attacked, certs=attacked.pki.node("node-b")) as channel:
        assert (await raw_stream(channel, BEATS, [BEAT], most=1)).bodies
        assert (await raw_call(channel, LIST, b"")).reason == "UNKNOWN_CALLER"


async def test_a_certificate_that_ends_ends_its_caller_on_a_connection_that_lives(attacked: DevStack) -> None:
    certs = presented(attacked, "short", OPERATOR_URI, ends=SystemClock().now() + timedelta(seconds=5))
    async with raw_channel(attacked, certs=certs) as channel:
        assert (await raw_call(channel, LIST, b"")).code is grpc.StatusCode.OK
        async with asyncio.timeout(20):
            while (got := await raw_call(channel, LIST, b"")).code is grpc.StatusCode.OK:  # noqa: ASYNC110  # the node is asked
                await asyncio.sleep(0.2)
        assert (got.reason, "expired" in got.message) == ("CERTIFICATE_REFUSED", True)


async def test_no_participant_and_no_head_end_reaches_etcd(attacked: DevStack) -> None:
    """Etcd takes certificates of its own authority; the control: a tool's is one."""
    request = etcd.RangeRequest(key=b"\0", range_end=b"\0", limit=1)
    for certs in (attacked.certs(OPERATOR), attacked.pki.node("node-a"), attacked.tool_certs):
        async with _etcd(attacked, certs) as kv:
            for call in (kv.Range(request, timeout=3), kv.Put(etcd.PutRequest(key=b"x"), timeout=3)):
                with pytest.raises(grpc.aio.AioRpcError) as failed:
                    await call
                assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
    async with _etcd(attacked, attacked.etcd_certs) as kv:
        assert (await kv.Range(request, timeout=10)).count > 0


@asynccontextmanager
async def _etcd(stack: DevStack, certs: CertPaths) -> AsyncIterator[Any]:
    credentials = grpc.ssl_channel_credentials(
        stack.pki.etcd.ca_file.read_bytes(), certs.key.read_bytes(), certs.cert.read_bytes()
    )
    options = (("grpc.ssl_target_name_override", "localhost"), ("grpc.use_local_subchannel_pool", 1))
    async with grpc.aio.secure_channel(stack.etcd_targets[0], credentials, options=options) as channel:
        yield etcd_rpc.KVStub(channel)
