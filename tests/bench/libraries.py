"""Hand-written code beside the library that could replace it: microseconds of each by turns, and their ratio.

`python -m tests.bench.libraries` in an environment that also has the candidates, which the project does not depend on:
cachetools msgspec orjson uuid-utils. docs/decisions/0044 says what came of it.
"""

import dataclasses
import gc
import importlib
import statistics
import time
import tracemalloc
import uuid
from collections import OrderedDict
from collections.abc import Callable
from json import JSONEncoder
from typing import Any, NamedTuple

from prometheus_client import Histogram
from utrn_client.ids import make_transaction_id

from core.domain.authorization import Permit
from core.domain.meter import Meter
from core.metrics import Stage, StageTimes

_ROUNDS = 31
_TIMES = 5_000
_KEYS = [(f"originator-{index % 7}", f"{index:016x}") for index in range(2_000)]

Step = Callable[[int], object]


class Row(NamedTuple):
    """One candidate: what is compared, and the median microseconds of each side."""

    what: str
    hand_us: float
    library_us: float


def by_turns(what: str, hand: Step, library: Step) -> Row:
    """Return the medians of both sides, measured by turns: what slows one for a while slows the other as much."""
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(_ROUNDS):
        for step, times in zip((hand, library), taken, strict=True):
            started = time.process_time()
            for index in range(_TIMES):
                step(index)
            times.append((time.process_time() - started) / _TIMES * 1e6)
    return Row(what, statistics.median(taken[0]), statistics.median(taken[1]))


def caches() -> list[Row]:
    """Return a look and a write, each in a full cache of 1,000."""
    cachetools: Any = importlib.import_module("cachetools")
    hand: OrderedDict[tuple[str, str], int] = OrderedDict()
    library, timed = cachetools.LRUCache(1_000), cachetools.TTLCache(1_000, 60.0)

    def put(index: int) -> None:
        key = _KEYS[index % 2_000]
        hand[key] = index
        hand.move_to_end(key)
        if len(hand) > 1_000:
            hand.popitem(last=False)

    def look(index: int) -> object:
        key = _KEYS[1_000 + index % 1_000]
        found = hand.get(key)
        if found is not None:
            hand.move_to_end(key)
        return found

    def put_in(cache: Any) -> Step:
        return lambda index: cache.__setitem__(_KEYS[index % 2_000], index)

    def look_in(cache: Any) -> Step:
        return lambda index: cache.get(_KEYS[1_000 + index % 1_000])

    return [
        by_turns("LRU write: OrderedDict, cachetools.LRUCache", put, put_in(library)),
        by_turns("LRU look: OrderedDict, cachetools.LRUCache", look, look_in(library)),
        by_turns("write with a lifetime: OrderedDict, cachetools.TTLCache", put, put_in(timed)),
        by_turns("look with a lifetime: OrderedDict, cachetools.TTLCache", look, look_in(timed)),
    ]


def audit_lines() -> list[Row]:
    """Return the JSON of the audit log's line of a decision."""
    msgspec: Any = importlib.import_module("msgspec.json")
    orjson: Any = importlib.import_module("orjson")
    read_set = [
        [kind, "0123456789abcdef", 12_345] for kind in ("pan", "meter", "participant", "participant", "appointment")
    ]
    line = {
        "at": "2026-01-01T00:00:00.000001+00:00", "clock": "cluster", "caller": "psp-north",
        "identity": "spiffe://utrn/participant/psp-north", "act": "TOP_UP", "ask": make_transaction_id(),
        "subject": "0123456789abcdef", "pence": 1000, "outcome": "allowed", "rule": "appointment:1", "basis": read_set,
    }  # fmt: skip
    encode = JSONEncoder(separators=(",", ":"), check_circular=False).encode
    fast = msgspec.Encoder().encode
    return [
        by_turns("JSON of a decision: json, msgspec", lambda _: (encode(line) + "\n").encode(), lambda _: fast(line)),
        by_turns(
            "JSON of a decision: json, orjson", lambda _: (encode(line) + "\n").encode(), lambda _: orjson.dumps(line)
        ),
    ]


def values() -> list[Row]:
    """Return the making of the value with the most fields that a sale makes."""
    msgspec: Any = importlib.import_module("msgspec")
    new, fields = tuple.__new__, (None, "s", b"p", None, 1, 2, None)
    struct = msgspec.defstruct("Struct", Permit._fields, frozen=True, gc=False)

    def by_name(_: int) -> object:
        return Permit(None, "s", b"p", None, 1, 2, None)  # type: ignore[arg-type]

    def by_tuple(_: int) -> object:
        return new(Permit, (None, "s", b"p", None, 1, 2, fields))

    def by_struct(_: int) -> object:
        return struct(None, "s", b"p", None, 1, 2, None)

    for what, make in (("tuple", by_tuple), ("struct", by_struct)):
        gc.collect()
        tracemalloc.start()
        kept = [make(index) for index in range(10_000)]
        print(f"bytes of one {what}: {tracemalloc.get_traced_memory()[0] / len(kept):.0f}")  # noqa: T201
        tracemalloc.stop()
    names = [one.name for one in dataclasses.fields(Meter)]
    record: Any = msgspec.defstruct("Record", names, frozen=True, gc=False, kw_only=True)
    given: dict[str, Any] = dict.fromkeys(names)
    return [
        by_turns("a Meter: dataclass, msgspec.Struct", lambda _: Meter(**given), lambda _: record(**given)),
        by_turns("a value of 7 fields: tuple.__new__, msgspec.Struct", by_tuple, by_struct),
        by_turns("a value of 7 fields: tuple.__new__, its own name", by_tuple, by_name),
    ]


def stage_times() -> Row:
    """Return the recording of one duration."""
    times = StageTimes()
    histogram = Histogram("libraries_stage_seconds", "Bench.", ["stage"], buckets=[1e-6 * 2**n for n in range(1, 27)])
    labelled = histogram.labels("issue")
    return by_turns(
        "a duration: StageTimes, prometheus_client.Histogram",
        lambda index: times.record(Stage.ISSUE, index * 1e-6),
        lambda index: labelled.observe(index * 1e-6),
    )


def ids() -> Row:
    """Return the making of a UUIDv7."""
    uuid_utils: Any = importlib.import_module("uuid_utils")
    uuid.UUID(str(uuid_utils.uuid7()))
    return by_turns("a UUIDv7: the kit, uuid-utils", lambda _: make_transaction_id(), lambda _: str(uuid_utils.uuid7()))


def main() -> None:
    """Print a table."""
    for row in (*caches(), *audit_lines(), *values(), stage_times(), ids()):
        ratio = row.library_us / row.hand_us
        print(f"{row.what:60} {row.hand_us:7.3f} {row.library_us:7.3f} us  x{ratio:.2f}")  # noqa: T201


if __name__ == "__main__":
    main()
