"""Head end and meters of the simulation: they lose, repeat and reorder, and credit each counter once."""

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Sequence

from app.drills.checker import CodeKey, Credited, Said
from core.domain.errors import HeadEndUnavailable, HsmUnavailable, UtrnError
from core.domain.meter import MeterId
from core.domain.token import Utrn, value_of
from core.ports.headend import (
    AddCredit,
    Answer,
    AnswerKind,
    Capabilities,
    GivenUp,
    HeadEndEvent,
    MessageState,
    StreamRestored,
)
from core.ports.signer import SignRequest
from tests.support.vends import utrn

CAPABILITIES = Capabilities(
    name="sim", dedupes_by_message_id=True, status_by_message_id=True, alerts_name_counter=True, in_flight_max=1000
)
_GIVE_UP_S = 1.0


def code_of(meter_id: str, counter: int, pence: int) -> Utrn:
    """Return the code that the meter takes: its MAC is a hash here, known to signer and meter alone."""
    mac = int.from_bytes(hashlib.sha256(f"{meter_id}/{counter}/{pence}".encode()).digest()[:4], "big")
    return utrn(counter, pence, mac)


class SimSigner:
    """A node's HSM."""

    def __init__(self) -> None:
        self.broken = False

    async def sign(self, requests: Sequence[SignRequest]) -> Sequence[Utrn | UtrnError]:
        await asyncio.sleep(0.0005)
        if self.broken:
            return [HsmUnavailable("no HSM worker is ready") for _ in requests]
        return [code_of(one.meter_id, one.counter, one.value.value) for one in requests]


class SimMeters:
    """Every meter: what it has credited."""

    def __init__(self) -> None:
        self.credits: list[Credited] = []
        self.not_authentic = 0
        self.said = Said()
        self._seen: set[tuple[str, int]] = set()

    def take(self, message: AddCredit, pence: int) -> AnswerKind:
        """Handle a code."""
        kind = self._result(message, pence)
        code = CodeKey(message.originator_id, message.meter_id, message.counter)
        if kind in (AnswerKind.APPLIED, AnswerKind.DUPLICATE):
            self.said.credited.add(code)
        return kind

    def _result(self, message: AddCredit, pence: int) -> AnswerKind:
        if message.utrn != code_of(message.meter_id, message.counter, pence):
            self.not_authentic += 1
            return AnswerKind.NOT_AUTHENTIC
        if (message.meter_id, message.counter) in self._seen:
            return AnswerKind.DUPLICATE
        self._seen.add((message.meter_id, message.counter))
        self.credits.append(
            Credited(
                meter_id=message.meter_id,
                originator_id=message.originator_id,
                counter=message.counter,
                utrn=message.utrn,
                pence=pence,
            )
        )
        return AnswerKind.APPLIED


class SimWan:
    """The head end and the network behind it, one for all nodes."""

    def __init__(self, chance: random.Random, meters: SimMeters, *, loss: float) -> None:
        self._chance = chance
        self._meters = meters
        self.loss = loss
        self.outage = False
        self._states: dict[str, Answer | GivenUp | MessageState] = {}
        self._streams: list[asyncio.Queue[HeadEndEvent]] = []
        self.tasks: asyncio.TaskGroup | None = None

    def open_stream(self) -> asyncio.Queue[HeadEndEvent]:
        stream: asyncio.Queue[HeadEndEvent] = asyncio.Queue()
        stream.put_nowait(StreamRestored())
        self._streams.append(stream)
        return stream

    def close_stream(self, stream: asyncio.Queue[HeadEndEvent]) -> None:
        self._streams.remove(stream)

    def accept(self, message: AddCredit) -> None:
        """Store a message; a repeat of one that is under way or answered is not carried again."""
        state = self._states.get(message.message_id)
        if state is MessageState.IN_FLIGHT or isinstance(state, Answer):
            return
        self._states[message.message_id] = MessageState.IN_FLIGHT
        assert self.tasks is not None
        for _ in range(2 if self._chance.random() < self.loss else 1):
            self.tasks.create_task(self._carry(message))

    def status(self, message_id: str) -> Answer | GivenUp | MessageState:
        return self._states.get(message_id, MessageState.NOT_KNOWN)

    async def _carry(self, message: AddCredit) -> None:
        await asyncio.sleep(self._chance.lognormvariate(-3.5, 0.8))
        lost_before, lost_after = self._chance.random() < self.loss, self._chance.random() < self.loss
        if self.outage or lost_before:
            await self._give_up(message)
            return
        pence = _pence_of(message.utrn)
        kind = self._meters.take(message, pence)
        await asyncio.sleep(self._chance.lognormvariate(-3.5, 0.8))
        if lost_after:
            await self._give_up(message)
            return
        answer = Answer(message_id=message.message_id, kind=kind)
        self._states[message.message_id] = answer
        self._tell(answer)

    async def _give_up(self, message: AddCredit) -> None:
        await asyncio.sleep(_GIVE_UP_S)
        if not isinstance(self._states[message.message_id], Answer):
            given_up = GivenUp(message_id=message.message_id, maybe_applied=True)
            self._states[message.message_id] = given_up
            self._tell(given_up)

    def _tell(self, event: HeadEndEvent) -> None:
        for stream in self._streams:
            if self._chance.random() >= self.loss:
                stream.put_nowait(event)
                if self._chance.random() < self.loss:
                    stream.put_nowait(event)


class SimHeadEnd:
    """One node's HeadEnd."""

    def __init__(self, wan: SimWan, chance: random.Random) -> None:
        self._wan = wan
        self._chance = chance
        self._stream = wan.open_stream()
        self.dead = False

    @property
    def available(self) -> bool:
        return not self._wan.outage

    async def capabilities(self) -> Capabilities:
        return CAPABILITIES

    async def send(self, message: AddCredit) -> None:
        await self._hop()
        self._wan.accept(message)
        await self._hop()

    async def status(self, message_id: str) -> Answer | GivenUp | MessageState:
        await self._hop()
        return self._wan.status(message_id)

    async def events(self) -> AsyncIterator[HeadEndEvent]:
        while True:
            event = await self._stream.get()
            if self.dead:
                await asyncio.get_running_loop().create_future()
            yield event

    def close(self) -> None:
        self.dead = True
        self._wan.close_stream(self._stream)

    async def _hop(self) -> None:
        await asyncio.sleep(self._chance.uniform(0.0005, 0.004))
        if self.dead:
            await asyncio.get_running_loop().create_future()
        if self._wan.outage or self._chance.random() < self._wan.loss:
            raise HeadEndUnavailable("no answer")


def _pence_of(code: Utrn) -> int:
    """Return the value that a code carries; see core.domain.token."""
    return value_of(code).value


def meter_ids(count: int) -> list[MeterId]:
    """Return the ids of the simulation's meters: the same ones in every run."""
    return [MeterId(f"00db12{number:010x}") for number in range(1, count + 1)]
