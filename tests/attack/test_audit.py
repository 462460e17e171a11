"""Somebody with a node's disk, or with etcd's certificate, or only with a terminal in mind, against the audit log."""

import asyncio
import contextlib
import json
import re
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from etcdpb import rpc_pb2 as etcd_pb
from etcdpb import rpc_pb2_grpc as etcd_rpc
from utrn.v1 import pan_service_pb2 as pan_pb
from utrn.v1 import top_up_service_pb2 as pb
from utrn.v1 import types_pb2

from app.devstack.files import OPERATOR, PSP, StackPlan
from app.devstack.stack import DevStack
from app.node.config import load_config
from cluster.codec.vend import vend_of, vend_value
from cluster.etcd import ops
from cluster.etcd.keys import Keys
from core.domain.money import Pence
from core.domain.participant import ParticipantId
from core.domain.vend import Channel, Vend
from core.gateways.audit_log_format import sealed
from tests.fakes.clock import HandClock
from tests.integration.test_command_line import as_json, utrn
from tests.support.calls import caller, registry_caller, top_up
from tests.support.patience import PATIENCE_S
from tests.support.selling import new_id, pans, planned, sell_all
from tests.support.vends import utrn as other_digits

pytestmark = [pytest.mark.real]

PLAN = StackPlan(meters=40, etcd_fsync=False, nodes=("node-a", "node-b"))
_TITLE = "\x1b]0;owned\x07\x1b[2J\u202e"


def _files(stack: DevStack) -> list[str]:
    return [str(one) for one in sorted((stack.folder / "trail").glob("*.trail"))]


def _verify(stack: DevStack, *, code: int = 0) -> dict[str, Any]:
    config = str(stack.node_config("node-a"))
    return as_json(utrn("audit", "verify", *_files(stack), "--config", config, "--json", code=code))


async def _sell(stack: DevStack, count: int = 1, node: str = "node-a") -> list[str]:
    sold = await sell_all(stack, [planned(pans(stack)[1]) for _ in range(count)], [node])
    return [one.plan.transaction_id for one in sold]


class Etcd:
    """The ledger, as whoever has a certificate of etcd's reads and writes it."""

    def __init__(self, stack: DevStack) -> None:
        config = load_config(stack.node_config("node-a")).etcd
        files = [one.read_bytes() for one in (config.ca, config.key, config.cert) if one is not None]
        credentials = grpc.ssl_channel_credentials(*files)
        options = [("grpc.ssl_target_name_override", "localhost")]
        self._channel = grpc.secure_channel(config.endpoints[0], credentials, options)
        self._stub: Any = etcd_rpc.KVStub(self._channel)
        self._keys = Keys(config.prefix)

    def __enter__(self) -> "Etcd":
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def read(self, transaction_id: str) -> bytes:
        request = etcd_pb.RangeRequest(key=self._keys.vend(PSP, transaction_id))
        value: bytes = self._stub.Range(request, timeout=60, wait_for_ready=True).kvs[0].value
        return value

    def write(self, transaction_id: str, value: bytes | None) -> None:
        key = self._keys.vend(PSP, transaction_id)
        op = ops.delete(key) if value is None else ops.put(key, value)
        self._stub.Txn(etcd_pb.TxnRequest(success=[op]), timeout=60, wait_for_ready=True)


def _in_sale(**fields: Any) -> Callable[[Vend], Vend]:
    return lambda one: replace(one, sale=replace(one.sale, **fields))


_EDITS: dict[str, Callable[[Vend], Vend]] = {
    "not as it was sold: amount": _in_sale(amount=Pence(99_900)),
    "not as it was sold: channel": _in_sale(channel=Channel.PHONE),
    "not as it was sold: digits": lambda one: replace(one, utrn=other_digits(one.counter, one.sale.amount, mac=77)),
    "names another participant": _in_sale(participant_id=ParticipantId("psp-other")),
}


def test_what_is_edited_added_or_deleted_in_the_ledger_does_not_pass(attacked: DevStack) -> None:
    bought, invented = asyncio.run(_sell(attacked, len(_EDITS) + 1)), new_id()
    told = _verify(attacked)
    assert told["ok"], told
    assert (told["vends"]["compared"], told["vends"]["without_digits"]) == (len(bought), 0)
    with Etcd(attacked) as etcd:
        before = {one: etcd.read(one) for one in bought}
        edited = dict(zip(_EDITS, bought, strict=False))
        try:
            for what, one in edited.items():
                etcd.write(one, vend_value(_EDITS[what](vend_of(before[one]))))
            etcd.write(bought[-1], None)
            etcd.write(invented, vend_value(_in_sale(transaction_id=invented)(vend_of(before[bought[-1]]))))
            until, problems = time.monotonic() + PATIENCE_S, list[str]()
            while len(problems) <= len(edited) + 1 and time.monotonic() < until:
                # A vend that no file knows is judged once every node has sealed its file after it.
                problems = _verify(attacked, code=1)["problems"]
        finally:
            for one, value in before.items():
                etcd.write(one, value)
            etcd.write(invented, None)
    expected = edited | {"was sold, and is not in the ledger": bought[-1], "no file has a decision": invented}
    assert len(problems) == len(expected)
    for what, one in expected.items():
        assert [problem for problem in problems if what in problem and one in problem], (what, problems)


async def _refused(stack: DevStack, request: pb.TopUpRequest) -> None:
    async with caller(stack) as stub:
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.TopUp(request)


def test_what_a_refused_request_holds_is_kept_masked_and_shown_without_moving_a_cursor(attacked: DevStack) -> None:
    card, code = pans(attacked)[2], "58312001487301774421"
    asyncio.run(_refused(attacked, top_up(pan=_TITLE, transaction_id=f"{_TITLE}{card} {code}")))
    asyncio.run(
        _refused(attacked, top_up(pan=card, transaction_id=card, reference=types_pb2.SaleReference(outlet_id=code)))
    )
    asyncio.run(_sell(attacked))
    shown = utrn("audit", "show", *_files(attacked))
    assert not [one for one in shown if not one.isprintable() and one != "\n"]
    kept = "".join(Path(file).read_text() for file in _files(attacked))
    kept += "".join(one.read_text() for one in attacked.log_file("node-a").parent.glob("node-*"))
    assert not re.search(rf"{card}|{code}", kept)


def test_whoever_looks_at_what_was_sold_or_at_everybodys_cards_leaves_a_line(attacked: DevStack) -> None:
    (sold,) = asyncio.run(_sell(attacked))

    async def look() -> None:
        plan = planned(pans(attacked)[1])
        async with caller(attacked) as stub:
            asked = top_up(pan=plan.pan, transaction_id=sold, amount_pence=plan.amount_pence, repeat=True)
            with contextlib.suppress(grpc.aio.AioRpcError):
                await stub.TopUp(asked, timeout=30)
            await stub.GetVend(pb.GetVendRequest(transaction_id=sold), timeout=30)
        async with registry_caller(attacked, OPERATOR) as registry:
            async for _ in registry.ReconcilePans(iter([pan_pb.ReconcilePansRequest()]), timeout=60):
                break

    asyncio.run(look())
    until = time.monotonic() + PATIENCE_S
    seen = set[tuple[str, str, str]]()
    wanted = {("GetVend", PSP, sold), ("ReconcilePans", OPERATOR, "")}
    while not wanted <= seen and time.monotonic() < until:
        kept = [json.loads(line) for file in _files(attacked) for line in Path(file).read_text().splitlines()]
        seen = {(one["act"], one["caller"], one["subject"] or "") for one in kept if one.get("outcome") == "allowed"}
    assert wanted <= seen, seen
    assert any(one.get("act") == "TopUp" for one in kept), "the repeat, or its refusal"


def _forged_on(path: Path) -> None:
    """Go on writing a file as its node would have."""
    lines = path.read_bytes().splitlines(keepends=True)
    last = json.loads(lines[-1])
    body = b'{"at":"x","caller":"c","act":"TOP_UP","ask":"forged","subject":"s","pence":1,"outcome":"allowed"}\n'
    at, block = HandClock().now(), last["block"] + 1
    seal, _ = sealed(body, block=block, prev=last["sha256"], lines=1, lost=0, at=at, end=False)
    path.write_bytes(b"".join(lines) + body + seal)


def _cut(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def _of(stack: DevStack, node: str) -> set[Path]:
    return {Path(file) for file in _files(stack) if Path(file).name.startswith(f"{node}-")}


def _ended_by_next_life(stack: DevStack) -> bool:
    return "the audit file of an earlier life is ended" in stack.log_file("node-b").read_text()


def test_nothing_is_added_to_or_cut_off_the_file_of_a_life_that_has_ended(attacked: DevStack) -> None:
    asyncio.run(_sell(attacked, node="node-b"))
    (died,) = _of(attacked, "node-b")
    attacked.kill("node-b", signal.SIGKILL)
    attacked.start_node("node-b")
    until = time.monotonic() + PATIENCE_S
    while not _ended_by_next_life(attacked) and time.monotonic() < until:
        time.sleep(0.05)
    attacked.kill("node-b", signal.SIGTERM)
    (finished,) = _of(attacked, "node-b") - {died}
    whole = {one: one.read_bytes() for one in (died, finished)}
    told = _verify(attacked)
    states = {Path(name).name: one["state"] for name, one in told["files"].items()}
    assert (states[died.name], states[finished.name], told["ok"]) == ("died", "finished", True)
    for forge in (_forged_on, _cut):
        for path, before in whole.items():
            path.write_bytes(before)
            forge(path)
        problems = _verify(attacked, code=1)["problems"]
        assert [[problem for problem in problems if path.name in problem] != [] for path in whole] == [True, True], (
            problems
        )
