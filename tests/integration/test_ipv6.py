"""Addresses of IPv6, on loopback: the metrics page, whether a peer's process is gone, and the kit over both kinds."""

import asyncio
import socket
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry
from utrn.v1 import top_up_service_pb2 as pb
from utrn.v1 import top_up_service_pb2_grpc as rpc
from utrn_client.channel import Tls, open_channel

from app.devstack.ca import DevCa
from app.devstack.ports import free_ports
from app.node import metrics
from app.node.config import load_config
from cluster.config import PeersConfig
from cluster.membership.failure_detector import FailureDetector
from core.gateways.system_clock import SystemClock
from tests.fakes.clock import HandClock
from tests.fakes.etcd import FakeEtcd
from tests.support.patience import PATIENCE_S

DEV = Path(__file__).parents[2] / "deploy" / "config" / "dev.toml"


class Service(rpc.TopUpServiceServicer):
    """Says through which of its addresses it was reached."""

    def __init__(self) -> None:
        self.peers: set[str] = set()

    async def GetVend(self, request: Any, context: Any) -> pb.GetVendResponse:  # noqa: N802
        self.peers.add("six" if "%5B::1%5D" in context.peer() or "[::1]" in context.peer() else "four")
        return pb.GetVendResponse()


async def test_a_process_that_is_gone_is_told_from_one_that_listens() -> None:
    etcd: Any = FakeEtcd()
    watch = FailureDetector(etcd, PeersConfig(dial_timeout_ms=2_000), HandClock(), node_id="node-a", members=list)
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listening:
        port = listening.getsockname()[1]
        assert not await watch._refused(f"[::1]:{port}")
    assert await watch._refused(f"[::1]:{port}")
    assert not await watch._refused("::1"), "what is no address is no sign of death"


def test_the_metrics_page_listens_at_an_ipv6_address(monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    config = load_config(DEV, {})
    node: Any = type("Node", (), {"config": replace(config, node=replace(config.node, metrics=f"[::1]:{port}"))})
    monkeypatch.setattr(metrics, "NodeCollector", lambda *_: CollectorRegistry())
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    guard: Any = None
    with metrics.serve_metrics(node, guard), opener.open(f"http://[::1]:{port}/metrics", timeout=30) as page:
        assert page.status == 200


@pytest.mark.parametrize("kinds", [("six",), ("four",), ("four", "six"), ("six", "six")])
async def test_the_kit_reaches_nodes_of_either_kind_and_of_both(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    certs = DevCa.load_or_create(tmp_path, now=SystemClock().now()).issue("node-a", server=True)
    pair = [(certs.key.read_bytes(), certs.cert.read_bytes())]
    credentials = grpc.ssl_server_credentials(pair, certs.ca.read_bytes(), require_client_auth=True)
    server, service, healthy = grpc.aio.server(), Service(), health.aio.HealthServicer()  # type: ignore[abstract]  # what it lacks is not called
    rpc.add_TopUpServiceServicer_to_server(service, server)
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    await healthy.set("utrn.v1.TopUpService", health_pb2.HealthCheckResponse.SERVING)
    hosts = {"six": "[::1]", "four": "127.0.0.1"}
    nodes = [f"{hosts[kind]}:{server.add_secure_port(f'{hosts[kind]}:0', credentials)}" for kind in kinds]
    await server.start()
    try:
        async with open_channel(nodes, Tls(cert=certs.cert, key=certs.key, ca=certs.ca)) as channel:
            stub: Any = rpc.TopUpServiceStub(channel)
            async with asyncio.timeout(PATIENCE_S):
                while service.peers != set(kinds):
                    await stub.GetVend(pb.GetVendRequest(), timeout=10.0)
    finally:
        await server.stop(None)
