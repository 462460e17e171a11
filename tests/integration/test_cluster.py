"""Three nodes: what operators see and do, who may not, and nodes that stall, leave, or are of another version."""

import asyncio
import http.client
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from utrn.admin.v1 import admin_service_pb2 as pb
from utrn.admin.v1 import admin_service_pb2_grpc as rpc
from utrn.peer.v1 import peer_service_pb2, peer_service_pb2_grpc
from utrn.v1 import types_pb2
from utrn_client.channel import Tls, open_channel
from utrn_client.ids import FileSaleBook, Sale, make_transaction_id
from utrn_client.till import Answer, NoAnswer, SaleRefused, Till

from app.devstack.files import NODES, OPERATOR, PSP, StackPlan
from app.devstack.stack import DevStack, etcd_config
from app.verification.ledger_watch import LedgerWatch
from tests.integration.test_command_line import as_json, utrn
from tests.support.calls import failure_of
from tests.support.guide import PROGRAMS, environment, make_guide
from tests.support.patience import PATIENCE_S
from tests.support.selling import drained, pans, planned, sell_all
from tests.support.stack import MakeStack

pytestmark = [pytest.mark.real]
ROOT = Path(__file__).parents[2]
_THREE = {"etcd_members": 3, "nodes": NODES, "etcd_fsync": False, "meters": 20}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevStack]:
    """A cluster whose tests leave it as they found it."""
    stack = DevStack(tmp_path_factory.mktemp("cluster"), StackPlan(**_THREE))  # type: ignore[arg-type]
    try:
        stack.start_all()
        yield stack
    finally:
        stack.stop_all()


def _tls(stack: DevStack, who: str) -> Tls:
    certs = stack.certs(who)
    return Tls(cert=certs.cert, key=certs.key, ca=certs.ca)


def _options(stack: DevStack, who: str = OPERATOR, nodes: tuple[str, ...] = NODES) -> list[str]:
    certs = stack.certs(who)
    target = ",".join(stack.node_target(node) for node in nodes)
    return ["--target", target, "--cert", str(certs.cert), "--key", str(certs.key), "--ca", str(certs.ca)]


async def _until(stack: DevStack, holds: Any, node: str = "node-a") -> pb.GetClusterStatusResponse:
    """Return the first status of which `holds` is true."""
    async with (
        asyncio.timeout(PATIENCE_S),
        open_channel([stack.node_target(node)], _tls(stack, OPERATOR), by_health=False) as channel,
    ):
        while True:
            found = await rpc.AdminServiceStub(channel).GetClusterStatus(pb.GetClusterStatusRequest(), timeout=5.0)
            if holds(found):
                return found
            await asyncio.sleep(0.05)


def _all_well(found: pb.GetClusterStatusResponse) -> bool:
    return (
        len(found.nodes) == 3
        and all(node.serving and node.shards and not node.drained for node in found.nodes)
        and all(shard.owner for shard in found.shards)
    )


async def _health(stack: DevStack, node: str, wanted: int) -> None:
    async with (
        asyncio.timeout(PATIENCE_S),
        open_channel([stack.node_target(node)], _tls(stack, PSP), by_health=False) as to,
    ):
        request = health_pb2.HealthCheckRequest(service="utrn.v1.TopUpService")
        async for reply in health_pb2_grpc.HealthStub(to).Watch(request):  # type: ignore[attr-defined]  # stub gap
            if reply.status == wanted:
                return


async def test_status_shows_nodes_shards_and_members(cluster: DevStack) -> None:
    await _until(cluster, _all_well)
    told = as_json(utrn("cluster", "status", *_options(cluster), "--json"))
    assert told["problems"] == []
    assert [node["node_id"] for node in told["nodes"]] == list(NODES)
    assert sum(node["shards"] for node in told["nodes"]) == len(told["shards"]) == 32
    assert all(int(node["lease_ttl_ms"]) >= 2000 and int(node["mirror_lag"]) >= 0 for node in told["nodes"])
    assert sum(one["leader"] for one in told["etcd_members"]) == 1
    assert len({shard["epoch"] for shard in told["shards"]}) > 1
    assert "All is well." in utrn("cluster", "status", *_options(cluster))
    assert "node-c" in utrn("cluster", "watch", *_options(cluster), "--every", "0.2", "--times", "2")


async def test_a_drained_node_sends_callers_and_shards_elsewhere_until_the_drain_ends(cluster: DevStack) -> None:
    await _until(cluster, _all_well)
    utrn("cluster", "drain", "node-b", *_options(cluster))
    await _health(cluster, "node-b", health_pb2.HealthCheckResponse.NOT_SERVING)
    found = await _until(
        cluster, lambda now: all(shard.owner and shard.owner != "node-b" for shard in now.shards), "node-b"
    )
    assert {node.node_id: node.drained for node in found.nodes}["node-b"]
    assert as_json(utrn("cluster", "drain", "node-b", "--undo", *_options(cluster), "--json"))["drained"] is False
    await _health(cluster, "node-b", health_pb2.HealthCheckResponse.SERVING)
    await _until(cluster, _all_well)


async def test_the_last_node_and_an_unknown_one_are_not_drained(cluster: DevStack) -> None:
    await _until(cluster, _all_well)
    assert "NODE_UNKNOWN" in utrn("cluster", "drain", "node-z", *_options(cluster), code=1)
    for node in ("node-a", "node-b"):
        utrn("cluster", "drain", node, *_options(cluster))
    assert "LAST_NODE" in utrn("cluster", "drain", "node-c", *_options(cluster), code=1)
    for node in ("node-a", "node-b"):
        utrn("cluster", "drain", node, "--undo", *_options(cluster))
    await _until(cluster, _all_well)


async def test_a_node_that_is_gone_is_missed_until_an_operator_takes_it_off_the_roster(make_stack: MakeStack) -> None:
    stack = make_stack(**{**_THREE, "etcd_members": 1})
    stack.start_all()
    await _until(stack, _all_well)
    assert "OPERATOR_ONLY" in utrn("cluster", "forget", "node-c", *_options(stack, PSP), code=1)
    assert "NODE_UNKNOWN" in utrn("cluster", "forget", "node-z", *_options(stack), code=1)
    assert "NODE_ALIVE" in utrn("cluster", "forget", "node-c", *_options(stack), code=1)
    stack.kill("node-c", signal.SIGKILL)
    await _until(stack, lambda now: [node.node_id for node in now.nodes if not node.alive] == ["node-c"])
    assert "node-c is not there" in utrn("cluster", "status", *_options(stack), code=3)
    utrn("cluster", "forget", "node-c", *_options(stack))
    await _until(stack, lambda now: [node.node_id for node in now.nodes] == ["node-a", "node-b"])
    assert "NODE_UNKNOWN" in utrn("cluster", "forget", "node-c", *_options(stack), code=1)


async def test_only_operators_see_the_cluster_and_only_nodes_hear_its_heart(cluster: DevStack) -> None:
    assert "OPERATOR_ONLY" in utrn("cluster", "status", *_options(cluster, PSP), code=1)
    assert "OPERATOR_ONLY" in utrn("cluster", "drain", "node-a", *_options(cluster, "supplier-north"), code=1)
    for who in (PSP, OPERATOR):
        async with open_channel([cluster.node_target("node-a")], _tls(cluster, who), by_health=False) as channel:
            call = peer_service_pb2_grpc.PeerServiceStub(channel).Heartbeat(
                peer_service_pb2.HeartbeatRequest(node_id="node-b")
            )
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call.read()
            assert failure_of(refused.value).reason == "UNKNOWN_CALLER"


def httpget(url: str) -> str:
    host, _, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=10)
    connection.request("GET", f"/{path}")
    text = connection.getresponse().read().decode()
    connection.close()
    return text


def test_every_node_tells_its_figures(cluster: DevStack) -> None:
    for node in NODES:
        text = httpget(cluster.metrics_url(node))
        for name in ("utrn_stage_seconds_bucket", "utrn_owed", "utrn_epoch", "utrn_mirror_revision", "utrn_serving 1.0",
                     "utrn_hsm_ready 1.0", "utrn_peers_heard 2.0", "utrn_commit_batches_total"):  # fmt: skip
            assert name in text, f"{node}: {name}"


async def test_the_commands_of_the_runbooks_run(cluster: DevStack) -> None:
    await _until(cluster, _all_well)
    operator, certs = " ".join(_options(cluster)), cluster.tool_certs
    fleet = f"--target {cluster.fleet_target} --cert {certs.cert} --key {certs.key} --ca {certs.ca}"
    known = {line["drill"] for line in map(json.loads, utrn("drill", "list", "--json").splitlines())}
    ran = set()
    for page in sorted((ROOT / "docs" / "runbooks").glob("*.md")):
        for command in re.findall(r"^\.venv/bin/utrn (.*)$", page.read_text(), re.MULTILINE):
            if command.startswith("drill run "):
                assert command.split()[2] in known
                continue
            filled = command.replace("$OPERATOR", operator).replace("$FLEET", fleet)
            hsm = cluster.folder / "hsm"
            filled = filled.replace("$TOKEN", f"--pin-file {hsm / 'pin'} --softhsm-conf {hsm / 'softhsm2.conf'}")
            filled = filled.replace("$NODE_CONFIG", str(cluster.node_config("node-a")))
            assert "$" not in filled
            if filled not in ran:
                utrn(*filled.split())
            ran.add(filled)
    utrn("cluster", "drain", "node-a", "--undo", *_options(cluster))
    assert len(ran) >= 5
    await _until(cluster, _all_well)


async def _logs_say(stack: DevStack, what: str, *, unless: bool) -> str:
    """Return what node-b and node-c have logged, once they say `what`; at once if they are not to."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            logs = "".join(stack.log_file(other).read_text() for other in ("node-b", "node-c"))
            if unless or what in logs:
                return logs
            await asyncio.sleep(0.05)


async def test_a_stuck_loop_loses_its_shards_by_its_peers_word_and_a_busy_one_keeps_them(make_stack: MakeStack) -> None:
    for seconds, keeps in ((0.3, True), (6.0, False)):
        node = (sys.executable, "-m", "tests.support.stalling_node", str(seconds))
        stack = make_stack(**_THREE, node_command=node)
        stack.start_all()
        for other in ("node-b", "node-c"):
            # Only one that was heard can fall silent.
            await _until(
                stack, lambda now: len(now.nodes) == 3 and all(one.beat_age_ms >= 0 for one in now.nodes), other
            )
        watch = LedgerWatch(etcd_config(stack))
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(watch.run())
            await watch.begin_settled(3)
            before = watch.shards_of("node-a")
            for _ in range(1 if not keeps else 5):
                os.kill(stack.pid("node-a"), signal.SIGUSR1)
                moved = await watch.until(lambda: watch.shards_of("node-a") != before, 4.0 if not keeps else 0.6)  # noqa: B023
            assert moved is not keeps
            watching.cancel()
        # Seen in the ledger before whoever did it has said so.
        logs = await _logs_say(stack, "a peer's lease is revoked", unless=keeps)
        assert ("a majority does not hear it" in logs) is not keeps
        assert "its process is gone" not in logs, "a stall is silence, and no death"
        stack.stop_all()


async def test_the_kit_sells_on_while_a_node_is_killed_and_a_till_that_died_goes_on(
    make_stack: MakeStack, tmp_path: Path
) -> None:
    stack = make_stack(**_THREE)
    stack.start_all()
    book = FileSaleBook(tmp_path / "book.jsonl")
    targets = [stack.node_target(node) for node in NODES]
    async with open_channel(targets, _tls(stack, PSP)) as channel:
        till = Till(channel, book)
        pan = pans(stack)[0]
        codes = [await till.sell(pan, 100 + number, channel=types_pb2.CHANNEL_APP) for number in range(10)]
        stack.kill("node-a", signal.SIGKILL)
        codes += [await till.sell(pan, 200 + number, channel=types_pb2.CHANNEL_APP) for number in range(20)]
        assert len({code.code.utrn for code in codes}) == 30
        for code in codes:
            code.done()
        with pytest.raises(SaleRefused) as refused:
            await till.sell("9826000000000000000", 100, channel=types_pb2.CHANNEL_APP)
        assert refused.value.reason in ("PAN_UNKNOWN", "BAD_FIELD")
        refused.value.done()
        for node in ("node-b", "node-c"):
            stack.kill(node, signal.SIGKILL)
        with pytest.raises(NoAnswer):
            await till.sell(pan, 300, channel=types_pb2.CHANNEL_APP, give_up_after_s=0.5)
    assert len(book.open_sales()) == 1
    for node in NODES:
        await asyncio.to_thread(stack.start_node, node)
    # A till that died while it wrote: what it left behind takes no other sale with it.
    book.close()
    with (tmp_path / "book.jsonl").open("a") as torn:
        torn.write('{"begin": {"transac')
    later = Sale(transaction_id=make_transaction_id(), pan=pan, amount_pence=100, channel=types_pb2.CHANNEL_APP)
    with closing(FileSaleBook(tmp_path / "book.jsonl")) as again:
        again.begin(later)
    with closing(FileSaleBook(tmp_path / "book.jsonl")) as third:
        assert third.open_sales()[-1] == later
        third.end(later.transaction_id, "never asked")
        async with open_channel(targets, _tls(stack, PSP)) as channel:
            results = await Till(channel, third).resume()
        assert [type(result).__name__ for result in results.values()] == ["Answer"]
        for answer in results.values():
            assert isinstance(answer, Answer)
            answer.done()
        assert third.open_sales() == []
    audit = await drained(stack)
    assert (audit.vends, audit.findings) == (31, [])


async def test_grpc_js_with_the_same_policy_sells_on_while_a_node_is_killed(
    make_stack: MakeStack, tmp_path: Path
) -> None:
    stack = make_stack(**_THREE)
    stack.start_all()
    guide = await asyncio.to_thread(make_guide, tmp_path / "guide")
    certs, targets = stack.certs(PSP), ",".join(stack.node_target(node) for node in NODES)
    till = await asyncio.create_subprocess_exec(
        *PROGRAMS["node"], "--target", targets, "--server-name", "localhost", "--cert", str(certs.cert), "--key",
        str(certs.key), "--ca", str(certs.ca), "--sales", str(tmp_path / "sales.jsonl"), "-",
        cwd=guide, env=environment(), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert till.stdin is not None
    assert till.stdout is not None
    answers = []
    for number in range(60):
        till.stdin.write((json.dumps({"pan": pans(stack)[number % 20], "pence": "500"}) + "\n").encode())
        receipt, _ = [json.loads(await asyncio.wait_for(till.stdout.readline(), 60)) for _ in range(2)]
        answers.append(receipt)
        if number == 20:
            stack.kill("node-b", signal.SIGKILL)
    till.stdin.close()
    assert await till.wait() == 0
    assert len({answer["code"] for answer in answers}) == 60
    audit = await drained(stack)
    assert (audit.vends, audit.findings) == (60, [])


async def test_a_node_too_old_for_a_record_sets_it_aside_says_so_and_sells_on(make_stack: MakeStack) -> None:
    from etcdpb import rpc_pb2 as etcd
    from utrn.store.v1 import records_pb2 as store

    from cluster.etcd import ops
    from cluster.etcd.client import EtcdClient
    from cluster.etcd.keys import Keys
    from core.domain.record import Kind

    stack = make_stack(meters=2, etcd_fsync=False)
    stack.start_all()
    config = etcd_config(stack)
    client = EtcdClient(config)
    newer = store.NodeRecord(schema=9, node_id="node-z", hsm_ready=False)
    await client.txn(etcd.TxnRequest(success=[ops.put(Keys(config.prefix).node("node-z"), newer.SerializeToString())]))
    found = await _until(stack, lambda now: any(node.node_id == "node-z" for node in now.nodes))
    assert stack.exit_code("node-a") is None, "a newer node among the members is no reason to stop"
    assert {node.node_id for node in found.nodes} == {"node-a", "node-z"}
    record = store.ParticipantRecord(schema=9, participant_id="psp-new")
    key = Keys(config.prefix).record(Kind.PARTICIPANT, "psp-new")
    await client.txn(etcd.TxnRequest(success=[ops.put(key, record.SerializeToString())]))
    await client.close()
    url = stack.metrics_url("node-a")
    async with asyncio.timeout(PATIENCE_S):
        while 'utrn_records_set_aside{kind="participant"} 1.0' not in await asyncio.to_thread(httpget, url):  # noqa: ASYNC110  # another process
            await asyncio.sleep(0.05)
    assert "ParticipantRecord has schema 9" in stack.log_file("node-a").read_text()
    sold = await sell_all(stack, [planned(pan) for pan in pans(stack)])
    assert [one.refused for one in sold] == [None, None], "one record of a newer version stops nothing else"
    assert stack.exit_code("node-a") is None


def test_sales_are_made_in_the_book_before_they_are_asked(tmp_path: Path) -> None:
    book = FileSaleBook(tmp_path / "book.jsonl")
    sale = Sale(transaction_id=make_transaction_id(), pan="9" * 19, amount_pence=100, channel=1)
    seen: list[bool] = []

    class Spy:
        def unary_unary(self, *_: Any, **__: Any) -> Any:
            async def call(*_: Any, **__: Any) -> Any:
                seen.append(book.open_sales() == [sale])
                raise ConnectionError

            return call

        def __getattr__(self, name: str) -> Any:
            return self.unary_unary

    till = Till(Spy(), book)  # type: ignore[arg-type]
    with pytest.raises(ConnectionError):
        asyncio.run(till.ask(sale))
    assert seen == [True]
    book.close()
