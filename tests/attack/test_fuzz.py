"""Every method of a node, by callers of every role, with bytes that no honest caller sends: seeded, and bounded."""

import asyncio
import itertools
import os
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
import pytest
from google.protobuf.message import Message

from app.devstack.files import AUDITOR, HELPDESK, OPERATOR, PSP, SUPPLIERS
from app.devstack.stack import DevStack
from tests.support.nasty import broken_bytes, mutated, nasty_message
from tests.support.raw import Answer, raw_call, raw_channel, raw_stream
from tests.support.requests import ANSWERED
from tests.support.selling import pans, planned, sell_all
from tests.support.served import METHODS

pytestmark = [pytest.mark.real]

CALLERS = (next(iter(SUPPLIERS)), PSP, OPERATOR, HELPDESK, AUDITOR, "nobody")
# What an operator does by it to this very stack would end the run: only made-up names are sent there.
_ENDS_THE_RUN: Final = re.compile(
    r".*/(SetParticipantStatus|SetIdentities|RevokeCertificates|SetSupplierKey|SetDrain|SetProfile|ChangeSupplier|TransferCounters)"
)
_AT_ONCE = 8
_MIB = 2**20
# A Python process that has served its first thousand calls grows by less than this.
_GROWS_MOST_MIB = 48
# Where no reason of ours is due.
_UNTYPED: Final = frozenset({grpc.StatusCode.OK, grpc.StatusCode.UNIMPLEMENTED})
_LIBRARY_TEXT: Final = re.compile(
    r"Error parsing|protobuf|Traceback|\w+(Error|Exception)\b|object at 0x|etcdserver|codec|Wire format|NoneType|"
    r"[Ee]xception (calling|deserializ|serializ)|core/|cluster/|\.py\b"
)


@dataclass(frozen=True)
class Shot:
    """A call to make."""

    who: str
    path: str
    bodies: tuple[bytes, ...]


def shots(seed: int, rounds: int) -> Iterator[Shot]:
    """Yield calls of every method by every caller, so many times."""
    chance = random.Random(seed)
    for _, (path, method), who in itertools.product(range(rounds), METHODS.items(), CALLERS):
        kind = method.input_type._concrete_class
        bases: list[Message] = [one for _, one in ANSWERED.get(method.name, ()) if isinstance(one, kind)]
        if who == OPERATOR and _ENDS_THE_RUN.fullmatch(path):
            bases = []
        yield Shot(who, path, tuple(_body(kind, bases, chance) for _ in range(2 if method.client_streaming else 1)))


def _body(kind: type[Message], bases: list[Message], chance: random.Random) -> bytes:
    if chance.random() < 0.15:
        return broken_bytes(chance)
    base = chance.choice(bases) if bases and chance.random() < 0.5 else nasty_message(kind, chance)
    body = base.SerializeToString()
    return mutated(body, chance) if chance.random() < 0.5 else body


async def fire(stack: DevStack, calls: Iterator[Shot]) -> list[str]:
    """Make the calls, a few at once; return what is wrong with their answers."""
    wrong: list[str] = []
    async with asyncio.TaskGroup() as tasks:
        for _ in range(_AT_ONCE):
            tasks.create_task(_fire(stack, calls, wrong))
    return wrong


async def _fire(stack: DevStack, calls: Iterator[Shot], wrong: list[str]) -> None:
    channels = {who: raw_channel(stack, who) for who in CALLERS}
    opened = {who: await one.__aenter__() for who, one in channels.items()}
    try:
        for shot in calls:
            answer = await _answer(opened[shot.who], shot)
            problem = _problem(answer)
            if problem:
                wrong.append(f"{problem}: {shot.who} {shot.path} {[one.hex()[:400] for one in shot.bodies]}: {answer}")
    finally:
        for channel in channels.values():
            await channel.__aexit__(None, None, None)


async def _answer(channel: grpc.aio.Channel, shot: Shot) -> Answer:
    if METHODS[shot.path].server_streaming:
        return await raw_stream(channel, shot.path, shot.bodies, most=1)
    return await raw_call(channel, shot.path, shot.bodies[0])


def _problem(answer: Answer) -> str:
    if answer.message == "Internal error from Core":
        # The client's library, when a stream was refused before its request was sent.
        return ""
    if answer.code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED):
        return "not answered as it should be"
    if _LIBRARY_TEXT.search(answer.message):
        return "a library's text"
    health = answer.code is grpc.StatusCode.NOT_FOUND and "no service of this name" in answer.message
    return "" if answer.reason or answer.code in _UNTYPED or health else "no reason"


def resident_mib(pid: int) -> float:
    """Return how much memory a process holds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / _MIB


async def _fuzz(stack: DevStack, seed: int, rounds: int) -> None:
    assert await fire(stack, shots(seed, 1)) == []
    before = resident_mib(stack.pid("node-a"))
    assert await fire(stack, shots(seed + 1, rounds)) == []
    grown = resident_mib(stack.pid("node-a")) - before
    assert grown < _GROWS_MOST_MIB, f"{grown:.0f} MiB more"
    assert stack.exit_code("node-a") is None
    log = stack.log_file("node-a").read_text(errors="replace")
    assert "Traceback" not in log
    assert "unexpected error" not in log
    (sold,) = await sell_all(stack, [planned(pans(stack)[-1])])
    assert sold.utrn, "an honest sale after all of it"


async def test_no_bytes_make_a_node_fail_grow_or_tell_of_its_libraries(attacked: DevStack) -> None:
    await _fuzz(attacked, seed=11, rounds=4)


@pytest.mark.attack_long
@pytest.mark.timeout(1800)
async def test_no_bytes_do_so_in_a_long_run(attacked: DevStack) -> None:
    await _fuzz(attacked, seed=random.SystemRandom().getrandbits(32), rounds=200)


def test_the_controls_of_what_is_looked_for() -> None:
    """Answers of a server without the interceptor, as they are: each is found."""
    parsers = Answer(grpc.StatusCode.UNKNOWN, "Unexpected <class 'google.protobuf.message.DecodeError'>: Error parsing")
    assert _problem(parsers)
    assert _problem(Answer(grpc.StatusCode.INTERNAL, "internal error; quote 1 to the operator"))
    assert _problem(Answer(grpc.StatusCode.INVALID_ARGUMENT, "'utf-8' codec can't decode byte", "BAD_FIELD"))
    assert _problem(Answer(grpc.StatusCode.INVALID_ARGUMENT, "wrong"))
    assert not _problem(Answer(grpc.StatusCode.INVALID_ARGUMENT, "pan: is missing", "BAD_FIELD"))
