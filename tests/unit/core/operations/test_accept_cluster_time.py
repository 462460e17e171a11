"""An operator sets cluster time: told first what that carries out, and only to where it was read to be."""

from typing import cast

import pytest

from core.access.approvals import ConsentOfLedger
from core.domain.approval import Consent
from core.domain.effective_dated import Ms
from core.domain.errors import BadField, ClocksDisagree
from core.domain.participant import ParticipantId, Principal
from core.operations.accept_cluster_time import AcceptTime, TimeStep
from core.ports.cluster_admin import Cluster, TimeStatus
from tests.support.market_node import OPERATOR, as_

NOW = 1_795_000_000_000


class OneTime:
    """A cluster of which only the time is asked."""

    def __init__(self, off_s: int, *, known: bool = True, agree: bool = True) -> None:
        self.status = TimeStatus(
            known=known, now_ms=NOW, ledger_ms=NOW, doubt="", clocks_agree=agree, clocks_off_ms=off_s * 1000
        )
        self.by: list[str] = []

    def time(self) -> TimeStatus:
        return self.status

    async def accept_time(self, *, by: ParticipantId, consent: Consent) -> None:
        self.by.append(by)


async def asked(cluster: OneTime, seconds: int | None) -> TimeStep:
    """Ask as an operator; a change is due already, and one more is in an hour."""

    def due_by(at: Ms) -> list[int]:
        return [one for one in (NOW - 5, NOW + 3_600_000) if one <= at]

    principal: Principal = as_(OPERATOR)
    return await AcceptTime(cast("Cluster", cluster), due_by, ConsentOfLedger())(principal, seconds)


async def test_without_a_number_nothing_is_done_and_what_would_be_is_told() -> None:
    cluster = OneTime(7200)
    assert await asked(cluster, None) == TimeStep(7200, 1, done=False)
    assert await asked(OneTime(-7200), None) == TimeStep(-7200, 0, done=False)
    assert cluster.by == []


async def test_it_is_set_to_where_the_operator_has_read_it_to_be_and_nowhere_else() -> None:
    cluster = OneTime(7200)
    for wrong in (0, 7190, -7200):
        with pytest.raises(BadField, match="7200 s ahead"):
            await asked(cluster, wrong)
    assert cluster.by == []
    assert await asked(cluster, 7203) == TimeStep(7200, 1, done=True)
    assert cluster.by == ["operator"]


@pytest.mark.parametrize(("known", "agree"), [(False, True), (True, False)])
async def test_there_must_be_something_to_set_it_to(*, known: bool, agree: bool) -> None:
    with pytest.raises(ClocksDisagree):
        await asked(OneTime(7200, known=known, agree=agree), None)
