"""The audit: what the meters credited against what the ledger says, code by code and to the penny."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import grpc
from utrn.sandbox.v1 import sandbox_pb2 as pb
from utrn.sandbox.v1 import sandbox_pb2_grpc as rpc

from cluster.audit.ledger_scan import all_vends
from cluster.config import EtcdConfig
from cluster.etcd.client import EtcdClient
from core.domain.delivery import DeliveryState
from core.domain.vend import Operation, Vend

CodeKey = tuple[str, str, int]


@dataclass(slots=True)
class AuditResult:
    """What the audit found. Money in pence.

    `lost`: applied by the ledger, not credited by the meter. `credited_twice`: credits beyond the first of one code.
    `findings`: a sentence for each broken promise; empty if all is well. `uncredited`: codes no meter has credited.
    Every vend is counted once among `applied`, `refused`, `enter_by_hand`, `open_cases`, `owed` and `not_requested`: of
    the last nobody has asked for the second step.
    """

    vends: int = 0
    issued_pence: int = 0
    applied: int = 0
    applied_pence: int = 0
    credited: int = 0
    credited_pence: int = 0
    credited_by_keypad: int = 0
    credited_twice: int = 0
    lost: int = 0
    owed: int = 0
    not_credited: int = 0
    not_credited_pence: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    enter_by_hand: int = 0
    not_requested: int = 0
    open_cases: int = 0
    findings: list[str] = field(default_factory=list)
    uncredited: set[CodeKey] = field(default_factory=set)

    def as_json(self) -> dict[str, Any]:
        """Return plain values, the findings counted."""
        values = {**asdict(self), "findings": len(self.findings)}
        del values["uncredited"]
        return values


async def audit_all(config: EtcdConfig, fleet_target: str, channel: Callable[[str], grpc.aio.Channel]) -> AuditResult:
    """Return the audit of the ledger at `config` against the fleet at `fleet_target`.

    Raises:
        EtcdUnreachable: the ledger cannot be read.
        grpc.aio.AioRpcError: the fleet cannot be asked.
    """
    client = EtcdClient(config)
    try:
        async with channel(fleet_target) as fleet:
            stub: rpc.FleetServiceAsyncStub = rpc.FleetServiceStub(fleet)
            # Twice, about the ledger's reading: what is credited before it must be in the ledger, and what the ledger
            # calls applied must be credited after it. So the audit holds while the service works.
            before = sum([1 async for _ in stub.ListCredits(pb.ListCreditsRequest())])
            unread: list[str] = []
            vends = [stored.vend async for stored in all_vends(client, config, unread)]
            credited = [ListCredit async for ListCredit in stub.ListCredits(pb.ListCreditsRequest())]
    finally:
        await client.close()
    result = compare(vends, credited, settled=before)
    result.findings += [f"{key}: this vend cannot be understood, and nothing is known of its money" for key in unread]
    return result


def compare(vends: Sequence[Vend], credited_codes: Sequence[pb.ListCreditsResponse], *, settled: int) -> AuditResult:
    """Return what holds between the ledger and the meters.

    Args:
        vends: All of the ledger.
        credited_codes: All credits, oldest first, read after the ledger.
        settled: How many of those were there before the ledger was read, and so must be in it.
    """
    result = AuditResult()
    by_code: dict[CodeKey, Vend] = {}
    for vend in vends:
        key = (vend.meter_id, vend.originator_id, vend.counter)
        if vend.gave_counter_back:
            # No code of this meter's: the right one may have its counter.
            _count_vend(result, vend)
            continue
        if key in by_code:
            result.findings.append(f"INV-2: meter {key[0]}: counter {key[2]} has two vends")
        by_code[key] = vend
        _count_vend(result, vend)
    _check_dense(result, by_code)
    credited: dict[CodeKey, int] = defaultdict(int)
    for number, credit in enumerate(credited_codes):
        _count_credit(result, credit, by_code, credited, must_be_known=number < settled)
    _count_rest(result, by_code, credited)
    return result


def _check_dense(result: AuditResult, vends: dict[CodeKey, Vend]) -> None:
    """Find counters that were spent and have no vend: a committed code that something has overwritten."""
    spent: dict[tuple[str, str], list[int]] = defaultdict(list)
    elsewhere = {key[:2] for key, vend in vends.items() if vend.sale.operation is Operation.EXTERNALLY_ISSUED}
    for meter_id, originator_id, counter in vends:
        spent[(meter_id, originator_id)].append(counter)
    for sequence, counters in spent.items():
        if sequence not in elsewhere and len(counters) != max(counters):
            missing = sorted(set(range(1, max(counters))) - set(counters))
            result.findings.append(f"INV-2: meter {sequence[0]}: counters {missing} were spent and have no vend")


def _count_vend(result: AuditResult, vend: Vend) -> None:
    result.vends += 1
    result.issued_pence += vend.sale.amount
    state = vend.delivery.state
    if state is DeliveryState.APPLIED:
        result.applied += 1
        result.applied_pence += vend.sale.amount
    elif state is DeliveryState.REFUSED:
        reason = vend.delivery.reason.name
        result.refused = dict(Counter(result.refused) + Counter({reason: 1}))
    elif state is DeliveryState.ENTER_BY_HAND:
        result.enter_by_hand += 1
    elif state is DeliveryState.NOT_REQUESTED:
        result.not_requested += 1
    elif state is DeliveryState.NEEDS_CHECK:
        result.open_cases += 1
    elif vend.delivery.owed:
        result.owed += 1


def _count_credit(
    result: AuditResult,
    credit: pb.ListCreditsResponse,
    vends: dict[CodeKey, Vend],
    credited: dict[CodeKey, int],
    *,
    must_be_known: bool,
) -> None:
    key = (credit.meter_id, credit.originator_id, credit.utrn_counter)
    name = f"meter {key[0]}: counter {key[2]}"
    result.credited += 1
    result.credited_pence += credit.amount_pence
    result.credited_by_keypad += credit.keypad
    credited[key] += 1
    if credited[key] > 1:
        result.credited_twice += 1
        result.findings.append(f"INV-6: {name} was credited {credited[key]} times")
    vend = vends.get(key)
    if vend is None:
        if must_be_known:
            result.findings.append(f"INV-4: {name} was credited without a committed vend")
    elif vend.utrn != credit.utrn or vend.sale.amount != credit.amount_pence:
        result.findings.append(f"INV-2: {name} was credited with another code than the ledger has")


def _count_rest(result: AuditResult, vends: dict[CodeKey, Vend], credited: dict[CodeKey, int]) -> None:
    for key, vend in vends.items():
        if credited[key]:
            continue
        result.uncredited.add(key)
        result.not_credited += 1
        result.not_credited_pence += vend.sale.amount
        if vend.delivery.state is DeliveryState.APPLIED:
            result.lost += 1
            result.findings.append(
                f"INV-6: meter {key[0]}: counter {key[2]} is applied in the ledger, not at the meter"
            )
