"""What one participant may have of a node at once: it is told to come back, and nobody else notices."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

import core.api.limits
from core.api.access import ACCESS
from core.api.interceptor import Interceptor
from core.api.limits import CallerLimits, in_slices
from core.api.status import Context
from core.domain.errors import CallerSuspended, NotReady, Overloaded, PanNotFound, Refused, UnknownCaller
from tests.support.market_node import OPERATOR
from tests.support.patience import PATIENCE_S
from tests.support.raw import Answer, raw_call, raw_stream
from tests.support.served import Versioned, served
from tests.support.vends import PSP, SUPPLIER

SALE, WATCH = "/utrn.v1.TopUpService/TopUp", "/grpc.health.v1.Health/Watch"
READ, MISSING = "/utrn.v1.MeterService/GetMeter", "/utrn.v1.MeterService/NoSuchMethod"
LOAD = "/utrn.v1.RegistryService/LoadRecords"


def limits(**other: Any) -> CallerLimits:
    return CallerLimits(**{"calls_max": 2, "watches_max": 1, "refusals_per_s": 0.5, **other})


class Held:
    """A method whose calls wait until they are let go."""

    def __init__(self) -> None:
        self.waiting, self.go = 0, asyncio.Event()

    async def unary(self, request: Any, context: Context) -> Any:
        self.waiting += 1
        await self.go.wait()
        raise PanNotFound("unknown")

    async def stream(self, request: Any, context: Context) -> AsyncIterator[Any]:
        self.waiting += 1
        await self.go.wait()
        for one in list[Any]():
            yield one

    async def until(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while self.waiting < count:  # noqa: ASYNC110  # the node is watched
                await asyncio.sleep(0.005)


@pytest.mark.parametrize(("path", "most"), [(SALE, 2), (WATCH, 1), (LOAD, 4)])
async def test_more_calls_of_one_at_once_are_told_to_come_back_and_anothers_are_not(path: str, most: int) -> None:
    held, known = Held(), Versioned(OPERATOR)
    interceptor = Interceptor(known.authenticate, lambda _: None, limits=limits(refusals_per_s=0))
    sale = path == SALE

    async def ask(channel: Any) -> Answer:
        return await (raw_call(channel, path, b"") if sale else raw_stream(channel, path, [b""]))

    async with (
        served({path: held.unary if sale else held.stream}, [interceptor]) as channel,
        asyncio.TaskGroup() as tasks,
    ):
        first = [tasks.create_task(ask(channel)) for _ in range(most)]
        await held.until(most)
        assert (await ask(channel)).reason == "OVERLOADED"
        known.who = SUPPLIER
        first.append(tasks.create_task(ask(channel)))
        await held.until(most + 1)
        held.go.set()
    assert "OVERLOADED" not in [one.result().reason for one in first]
    known.who = OPERATOR
    assert (await ask_alone(path, interceptor, held)).reason != "OVERLOADED"


async def ask_alone(path: str, interceptor: Interceptor, held: Held) -> Answer:
    sale = path == SALE
    async with served({path: held.unary if sale else held.stream}, [interceptor]) as channel:
        return await (raw_call(channel, path, b"") if sale else raw_stream(channel, path, [b""]))


async def test_who_is_refused_without_end_is_told_to_come_back_before_it_costs_a_look() -> None:
    looked, known = 0, Versioned(PSP)

    async def unknown(request: Any, context: Context) -> Any:
        nonlocal looked
        looked += 1
        raise PanNotFound("unknown")

    interceptor = Interceptor(known.authenticate, lambda _: None, limits=limits())
    async with served({SALE: unknown}, [interceptor]) as channel:
        reasons = [(await raw_call(channel, SALE, b"")).reason for _ in range(60)]
        known.who = SUPPLIER
        another = await raw_call(channel, SALE, b"")
    # Twenty seconds' worth, and what came while they were asked.
    assert 10 <= looked - 1 < 40
    assert set(reasons[looked:]) == {"OVERLOADED"}
    assert another.reason == "PAN_UNKNOWN"


async def test_without_the_bound_every_refusal_costs_a_look() -> None:
    """The control."""
    bound = limits(refusals_per_s=0)
    for _ in range(10_000):
        bound.refused("psp")
    with bound.under_way("psp", "TopUp", ACCESS[SALE]):
        pass


@pytest.mark.parametrize("refusal", [UnknownCaller("nobody"), CallerSuspended("suspended")], ids=["nobody", "barred"])
@pytest.mark.parametrize("path", [READ, SALE, MISSING], ids=["every call noted", "refusals noted", "no such method"])
async def test_who_is_turned_away_without_end_writes_no_more_lines(path: str, refusal: Refused) -> None:
    noted: list[str] = []
    known = Versioned(PSP if isinstance(refusal, CallerSuspended) else None, refusal)
    interceptor = Interceptor(known.authenticate, lambda _: None, lambda *told: noted.append(told[3]), limits())
    method = READ if path == SALE else path
    async with served({READ: _never, SALE: _never}, [interceptor]) as channel:
        reasons = [(await raw_call(channel, method, b"")).reason for _ in range(60)]
    told = reasons.count(refusal.reason)
    assert 10 <= told < 40
    assert set(reasons[told:]) == {"OVERLOADED"}
    assert noted == ([] if path == MISSING else [refusal.reason] * told)


async def test_without_the_bound_each_of_them_writes_a_line() -> None:
    """The control."""
    noted: list[str] = []
    known = Versioned(None, UnknownCaller("nobody"))
    unbounded = limits(refusals_per_s=0)
    interceptor = Interceptor(known.authenticate, lambda _: None, lambda *told: noted.append(told[3]), unbounded)
    async with served({READ: _never}, [interceptor]) as channel:
        for _ in range(60):
            await raw_call(channel, READ, b"")
    assert len(noted) == 60


async def test_whoever_calls_before_participants_are_known_is_counted_by_its_certificate() -> None:
    held = Held()
    known = Versioned(None, NotReady("reading"))
    interceptor = Interceptor(known.authenticate, lambda _: None, limits=limits())
    async with served({WATCH: held.stream}, [interceptor]) as channel, asyncio.TaskGroup() as tasks:
        tasks.create_task(raw_stream(channel, WATCH, [b""]))
        await held.until(1)
        assert (await raw_stream(channel, WATCH, [b""])).reason == "OVERLOADED"
        held.go.set()


async def _never(request: Any, context: Context) -> Any:
    raise AssertionError("nobody comes so far")


async def test_refusals_are_forgiven_in_time() -> None:
    bound = limits(refusals_per_s=1000.0)
    # Two seconds of forgiveness beyond the burst: the loop takes a small part of that on any machine.
    for _ in range(22_000):
        bound.refused("psp")
    with pytest.raises(Overloaded), bound.under_way("psp", "TopUp", ACCESS[SALE]):
        pass
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                with bound.under_way("psp", "TopUp", ACCESS[SALE]):
                    return
            except Overloaded:
                await asyncio.sleep(0.01)


async def test_a_long_conversion_lets_others_have_their_turn() -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks:
        other = tasks.create_task(others())
        assert len(await in_slices(range(300), lambda one: sum(range(20_000)) + one)) == 300
        other.cancel()
    assert turns > 5


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> CallerLimits:
    """Two requests may be slow; what has not come after 50 ms is."""
    monkeypatch.setattr(core.api.limits, "_SOON_S", 0.05)
    monkeypatch.setattr(core.api.limits, "_SLOW_MAX", 2)
    # However busy the machine is.
    monkeypatch.setattr(core.api.limits, "_LATE_S", PATIENCE_S)
    return limits()


async def test_a_few_requests_may_be_slow_and_the_next_one_is_sent_away(hasty: CallerLimits) -> None:
    async with AsyncExitStack() as slow:
        for _ in range(2):
            await slow.enter_async_context(hasty.arriving("psp-a", PATIENCE_S))
        with pytest.raises(Overloaded):
            async with hasty.arriving("psp-a", PATIENCE_S):
                await asyncio.Event().wait()
        # Another's are counted apart, and what comes at once is never slow.
        for caller in ("psp-b", "psp-a"):
            async with hasty.arriving(caller, PATIENCE_S):
                pass
    assert not hasty._slow


async def test_what_does_not_come_at_all_is_late_and_not_too_much(hasty: CallerLimits) -> None:
    with pytest.raises(TimeoutError):
        async with hasty.arriving("psp-a", 0.1):
            await asyncio.Event().wait()
    assert not hasty._slow


async def test_while_the_node_itself_is_late_nobody_is_sent_away(
    hasty: CallerLimits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core.api.limits, "_SLOW_MAX", 0)
    monkeypatch.setattr(core.api.limits, "_LATE_S", -1.0)
    came, looked = asyncio.Event(), 0
    look = core.api.limits.Arriving._look_soon

    def counted(self: Any) -> None:
        nonlocal looked
        looked += 1
        if looked == 3:
            came.set()
        look(self)

    monkeypatch.setattr(core.api.limits.Arriving, "_look_soon", counted)
    async with hasty.arriving("psp-a", PATIENCE_S):
        await came.wait()
