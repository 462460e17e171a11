"""Head end and meters of the simulation: they lose, repeat, reorder, refuse and lie, and credit each counter once."""

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from datetime import timedelta

from app.verification.checker import CodeKey, Credited, Said, Taken
from core.delivery.outcomes import CREDIT_ADDED_LOCALLY, DUPLICATE_UTRN, EXCEEDS_MAX_BALANCE
from core.domain.delivery import DeliveryReason
from core.domain.errors import HeadEndStale, HeadEndUnavailable, HsmUnavailable, UtrnError
from core.domain.meter import MeterId, OriginatorId
from core.domain.utrn import COUNTER_MAX, Counter, Utrn, truncated_counter, value_of
from core.ports.head_end import (
    AddCredit,
    Alert,
    Answer,
    AnswerKind,
    Capabilities,
    GivenUp,
    HeadEndEvent,
    MessageState,
    Numbered,
    StreamRestored,
)
from core.ports.signer import SignRequest
from tests.sim.clock import now_s
from tests.support.vends import NOW, utrn

CAPABILITIES = Capabilities(
    name="sim", dedupes_by_message_id=True, status_by_message_id=True, alerts_name_counter=True, in_flight_max=1000,
    fences_by_epoch=True, honours_not_after=True,
)  # fmt: skip
_GIVE_UP_S = 1.0
# GBCS: a meter remembers so many counters; whatever is below them all is a duplicate to it, credited or not.
_CACHE = 100
# A meter rebuilds a counter from its ten bits as the nearest one to the highest it has credited.
_REBUILT_WITHIN = 512
_REFUSALS = {AnswerKind.MAX_BALANCE: DeliveryReason.MAX_BALANCE, AnswerKind.UNEXPLAINED: DeliveryReason.MAX_BALANCE}


def code_of(originator_id: str, meter_id: str, counter: int, pence: int) -> Utrn:
    """Return the code that the meter takes: its MAC is a hash here, known to signer and meter alone."""
    told = f"{originator_id}/{meter_id}/{counter}/{pence}".encode()
    return utrn(counter, pence, int.from_bytes(hashlib.sha256(told).digest()[:4], "big"))


class SimSigner:
    """A node's HSM."""

    def __init__(self) -> None:
        self.broken = False

    async def sign(self, requests: Sequence[SignRequest]) -> Sequence[Utrn | UtrnError]:
        await asyncio.sleep(0.0005)
        if self.broken:
            return [HsmUnavailable("no HSM worker is ready") for _ in requests]
        return [
            code_of(request.key.originator_id, request.meter_id, request.counter, request.value.value)
            for request in requests
        ]


@dataclass(slots=True)
class _Sequence:
    """What a meter knows of one originator's counters."""

    cache: set[int] = field(default_factory=set)

    @property
    def highest(self) -> int:
        return max(self.cache, default=0)

    def rebuilt(self, bits: int) -> int:
        """Return the counter of which a code has the ten bits: the one nearest to the highest."""
        near = self.highest - self.highest % 1024 + bits
        return min((near - 1024, near, near + 1024), key=lambda one: (one <= 0, abs(one - self.highest)))

    def is_duplicate(self, counter: int) -> bool:
        return counter in self.cache or (len(self.cache) == _CACHE and counter < min(self.cache))

    def credit(self, counter: int) -> None:
        self.cache.add(counter)
        if len(self.cache) > _CACHE:
            self.cache.remove(min(self.cache))


class SimMeters:
    """Every meter: what it has credited, and what it has said."""

    def __init__(self, chance: random.Random, *, refuse: float) -> None:
        self.credits: list[Credited] = []
        self.not_authentic = 0
        self.said = Said()
        self.refuse = refuse
        self._chance = chance
        self._sequences: dict[tuple[str, str], _Sequence] = {}

    def counter_of(self, originator_id: str, meter_id: str, code: Utrn) -> int:
        """Return the counter that the meter takes a code to have."""
        sequence = self._sequences.setdefault((originator_id, meter_id), _Sequence())
        return sequence.rebuilt(truncated_counter(code))

    def take(self, originator_id: str, meter_id: str, code: Utrn) -> AnswerKind:
        """Handle a code, sent or keyed in."""
        sequence = self._sequences.setdefault((originator_id, meter_id), _Sequence())
        pence, counter = value_of(code).value, self.counter_of(originator_id, meter_id, code)
        if code != code_of(originator_id, meter_id, counter, pence):
            self.not_authentic += 1
            return AnswerKind.NOT_AUTHENTIC
        if sequence.is_duplicate(counter):
            return AnswerKind.DUPLICATE
        if self._chance.random() < self.refuse:
            return self._chance.choice((AnswerKind.MAX_BALANCE, AnswerKind.UNEXPLAINED, AnswerKind.TEMPORARY_FAILURE))
        sequence.credit(counter)
        self.credits.append(
            Credited(meter_id=meter_id, originator_id=originator_id, counter=counter, utrn=code, pence=pence)
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
        self._epochs: dict[str, int] = {}
        self.taken: list[Taken] = []
        self._streams: list[asyncio.Queue[HeadEndEvent]] = []
        # What it keeps: read again by number, whatever was lost on the way the first time.
        self.kept: list[Answer | Alert] = []
        self.more = asyncio.Event()
        self.tasks: asyncio.TaskGroup | None = None

    def open_stream(self) -> asyncio.Queue[HeadEndEvent]:
        stream: asyncio.Queue[HeadEndEvent] = asyncio.Queue()
        stream.put_nowait(StreamRestored())
        self._streams.append(stream)
        return stream

    def close_stream(self, stream: asyncio.Queue[HeadEndEvent]) -> None:
        self._streams.remove(stream)

    def restore(self) -> None:
        """End an outage; every stream is heard to work again."""
        if self.outage:
            self.outage = False
            for stream in self._streams:
                stream.put_nowait(StreamRestored())

    def accept(self, message: AddCredit) -> None:
        """Store a message; a repeat of one that is under way or answered is not carried again.

        Raises:
            HeadEndStale: it comes too late, or from an owner that has been replaced.
        """
        now = NOW + timedelta(seconds=now_s())
        if now > message.not_after or message.owner_epoch < self._epochs.get(message.meter_id, 0):
            raise HeadEndStale("too late, or from an owner that has been replaced")
        self._epochs[message.meter_id] = message.owner_epoch
        state = self._states.get(message.message_id)
        if state is MessageState.IN_FLIGHT or isinstance(state, Answer):
            return
        self._states[message.message_id] = MessageState.IN_FLIGHT
        self.taken.append(Taken(at=now_s(), code=CodeKey(message.originator_id, message.meter_id, message.counter)))
        assert self.tasks is not None
        for _ in range(2 if self._chance.random() < self.loss else 1):
            # The head end's own work: it goes on whatever becomes of the node that asked for it.
            self.tasks.create_task(self._carry(message), context=Context())

    def status(self, message_id: str) -> Answer | GivenUp | MessageState:
        return self._states.get(message_id, MessageState.NOT_KNOWN)

    def enter_by_hand(self, originator_id: str, meter_id: str, code: Utrn) -> bool:
        """Key a code in at its meter; return whether it was credited. The meter's alert tells of it, if it is heard."""
        counter = self._meters.counter_of(originator_id, meter_id, code)
        kind = self._meters.take(originator_id, meter_id, code)
        if kind is AnswerKind.DUPLICATE:
            self._alert(DUPLICATE_UTRN, originator_id, meter_id, counter)
        if kind is AnswerKind.APPLIED:
            self._alert(CREDIT_ADDED_LOCALLY, originator_id, meter_id, counter)
        return kind is AnswerKind.APPLIED

    def lie(self, originator_id: str, meter_id: str, last_issued: int) -> None:
        """Tell what is not so: of a counter that nobody has issued, or of a message that nobody has sent."""
        # So far ahead that it is never issued: of the next one, heard late, nobody could tell a lie from the truth.
        counter = self._chance.choice((COUNTER_MAX, last_issued + self._chance.randint(500, 5000)))
        never_sent = f"{originator_id}:{meter_id}:{counter << 32}:{'0' * 32}"
        match self._chance.randrange(4):
            case 0:
                self._alert(CREDIT_ADDED_LOCALLY, originator_id, meter_id, counter)
            case 1:
                self._tell(Answer(message_id=never_sent, kind=AnswerKind.APPLIED))
            case 2:
                self._tell(Answer(message_id=never_sent, kind=AnswerKind.DUPLICATE))
            case _:
                self._alert(CREDIT_ADDED_LOCALLY, originator_id, "00db12ffffffffff", counter)

    def _alert(self, alert_code: int, originator_id: str, meter_id: str, counter: int) -> None:
        if alert_code in (CREDIT_ADDED_LOCALLY, DUPLICATE_UTRN):
            self._meters.said.credited.add(CodeKey(originator_id, meter_id, counter))
        self._tell(
            Alert(
                meter_id=MeterId(meter_id),
                alert_code=alert_code,
                originator_id=OriginatorId(originator_id),
                counter=Counter(counter),
            )
        )

    async def _carry(self, message: AddCredit) -> None:
        await asyncio.sleep(self._chance.lognormvariate(-3.5, 0.8))
        lost_before, lost_after = self._chance.random() < self.loss, self._chance.random() < self.loss
        if self.outage or lost_before:
            await self._give_up(message)
            return
        kind = self._meters.take(message.originator_id, message.meter_id, message.utrn)
        await asyncio.sleep(self._chance.lognormvariate(-3.5, 0.8))
        if lost_after:
            await self._give_up(message)
            return
        self._say(message, kind)

    def _say(self, message: AddCredit, kind: AnswerKind) -> None:
        code = CodeKey(message.originator_id, message.meter_id, message.counter)
        answer = Answer(message_id=message.message_id, kind=kind)
        if kind in _REFUSALS:
            self._meters.said.refusals.add((code, _REFUSALS[kind]))
        if kind in (AnswerKind.APPLIED, AnswerKind.DUPLICATE):
            self._meters.said.credited.add(code)
        self._states[message.message_id] = (
            answer if kind is not AnswerKind.TEMPORARY_FAILURE else MessageState.NOT_KNOWN
        )
        self._tell(answer)
        if kind is AnswerKind.UNEXPLAINED:
            self._alert(EXCEEDS_MAX_BALANCE, *code)

    async def _give_up(self, message: AddCredit) -> None:
        await asyncio.sleep(_GIVE_UP_S)
        if not isinstance(self._states[message.message_id], Answer):
            given_up = GivenUp(message_id=message.message_id, maybe_applied=True)
            self._states[message.message_id] = given_up
            self._tell(given_up)

    def _tell(self, event: HeadEndEvent) -> None:
        if isinstance(event, Answer | Alert):
            self.kept.append(event)
            self.more.set()
            self.more = asyncio.Event()
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

    async def said(self, after: int) -> AsyncIterator[Numbered]:
        while True:
            more = self._wan.more
            while after < len(self._wan.kept):
                after += 1
                await self._hop()
                yield Numbered(after, self._wan.kept[after - 1])
            await more.wait()

    def close(self) -> None:
        self.dead = True
        self._wan.close_stream(self._stream)

    async def _hop(self) -> None:
        await asyncio.sleep(self._chance.uniform(0.0005, 0.004))
        if self.dead:
            await asyncio.get_running_loop().create_future()
        if self._wan.outage or self._chance.random() < self._wan.loss:
            raise HeadEndUnavailable("no answer")


def _code_of(credit: Credited) -> CodeKey:
    return CodeKey(credit.originator_id, credit.meter_id, credit.counter)


def meter_ids(count: int) -> list[MeterId]:
    """Return the ids of the simulation's meters: the same ones in every run."""
    return [MeterId(f"00db12{number:010x}") for number in range(1, count + 1)]
