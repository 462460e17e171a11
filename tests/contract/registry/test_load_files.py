"""A whole file through a node, half of it corrupt: in one go, in several, again. What is good of it is loaded."""

import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from etcdpb import rpc_pb2 as etcd_pb

from app.cli.registry_files import Line, Total, load_remote, read_lines
from cluster.etcd.client import prefix_end
from core.api.config import ApiConfig
from tests.fakes.clock import HandClock
from tests.support.etcd import Store
from tests.support.lines import MODEL_LINE, PSP_LINE, SUPPLIER_LINE, changed, flat, meter_line, pan_line
from tests.support.market_node import OPERATOR, MarketNode, put_all
from tests.support.servicers import NoNetwork, servicers
from tests.support.vends import SUPPLIER_ID

METERS = 550
CONFIG: Any = {"listen": "a:1", "cert": Path(), "key": Path(), "client_ca": Path()}
BYTES_MAX = ApiConfig(**CONFIG).message_bytes_max


@dataclass
class SomeFile:
    """Lines, the numbers of those that are corrupt, and the ids of what the good ones say."""

    lines: list[bytes] = field(default_factory=list)
    corrupt: list[int] = field(default_factory=list)
    again: int = 0
    said: set[str] = field(default_factory=set)

    def add(self, line: bytes, *, good: bool) -> None:
        self.lines.append(line)
        if not good:
            self.corrupt.append(len(self.lines))

    def good(self, line: dict[str, Any], name: str) -> None:
        self.add(json.dumps(line).encode(), good=True)
        self.said.add(name)

    def repeat(self, line: dict[str, Any]) -> None:
        self.add(json.dumps(line).encode(), good=True)
        self.again += 1

    def write(self, path: Path) -> Path:
        path.write_bytes(b"\n".join(self.lines) + b"\n")
        return path


def half_corrupt(seed: int) -> SomeFile:
    """Return a file of which half is corrupt: bytes, pieces of lines, wrong types, other content, unknown names."""
    chance = random.Random(seed)
    file = SomeFile()
    file.good(SUPPLIER_LINE, f"participant/{SUPPLIER_ID}")
    file.good(PSP_LINE, "participant/psp-corner")
    file.good(MODEL_LINE, "model/Acme/E1")
    for number in range(METERS):
        meter, pan = meter_line(number, zone=f"z{number}"), pan_line(number)
        file.good(meter, f"meter/{flat(meter)['meter.meter_id'][1]}")
        file.add(_corrupt(chance, meter, number), good=False)
        file.good(pan, f"pan/{pan['assign_pan']['pan']}")
        file.add(_corrupt(chance, pan, number), good=False)
        if not number % 50:
            file.repeat(meter)
            file.lines.append(chance.choice([b"", b"  ", b"\r"]))
    return file


def _corrupt(chance: random.Random, line: dict[str, Any], number: int) -> bytes:
    """Return a line that follows `line` and is corrupt, in one of many ways."""
    good = json.dumps(line).encode()
    (request,) = line
    name = chance.choice([one for one, (_, value) in flat(line).items() if not isinstance(value, dict)])
    wrong_type: object = chance.choice([[[]], {"": 1}, 1.5, True, "\ud800", "\x00", "x" * 300, 10**4000])
    at = chance.randrange(1, len(good) - 1)
    # Well-formed, and against what is there or what is not.
    if request == "add_meter":
        other = changed(line, **{"meter.kind": "METER_KIND_GSME"})
        strange = changed(line, **{"meter.meter_id": f"00db15{number:010x}", "supplier_id": "nobody"})
    else:
        other = changed(line, form="PAN_FORM_APP")
        strange = changed(line, meter_id=f"00db15{number:010x}", pan=f"98263{number:014d}")
    without = changed(line)
    inside, _ = flat(without)["meter.meter_id" if request == "add_meter" else "meter_id"]
    del inside["meter_id"]
    return chance.choice(
        [
            chance.randbytes(40).replace(b"\n", b"x").replace(b"\r", b"x"),
            good[:at],
            good[at:],
            good[:at] + b"\xff" + good[at:],
            good + good,
            b"x" * 100_000,
            json.dumps(changed(line, **{name: wrong_type})).encode(),
            json.dumps(without).encode(),
            json.dumps(changed(line, colour="red")).encode(),
            json.dumps({chance.choice(["add_meteor", "", "[a.b]"]): line[request]}).encode(),
            json.dumps({request: chance.choice([None, [], 7, ""])}).encode(),
            json.dumps(other).encode(),
            json.dumps(strange).encode(),
        ]
    )


class Loading:
    """A node to load through, over a prefix of its own."""

    def __init__(self, store: Store, prefix: str) -> None:
        self.store = replace(store, config=replace(store.config, prefix=prefix + store.config.prefix))
        self.node = MarketNode(self.store, HandClock())
        self.total = Total()
        self.goes = 0

    async def load(self, lines: Sequence[Line]) -> Total:
        """Load lines, as `utrn registry load` does."""
        async with self.node.running(committing=False):
            net = NoNetwork(servicers(self.node).registry, OPERATOR, BYTES_MAX)
            return await load_remote(net.channel, iter(lines), lambda _: None)

    async def kept(self) -> dict[bytes, bytes]:
        """Return every key and value of the registry."""
        prefix = self.node.records._keys.registry()
        found = await self.store.client.range(etcd_pb.RangeRequest(key=prefix, range_end=prefix_end(prefix)))
        return {kv.key.removeprefix(prefix): kv.value for kv in found.kvs}


@pytest.fixture
async def loading(store: Store) -> Loading:
    loading = Loading(store, "one-")
    await put_all(loading.node, [OPERATOR])
    return loading


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_of_a_half_corrupt_file_the_good_half_is_loaded_and_every_other_line_named_once(
    loading: Loading, tmp_path: Path, seed: int
) -> None:
    file = half_corrupt(seed)
    path = file.write(tmp_path / "half.jsonl")
    total = await loading.load(list(read_lines(path)))
    assert [line for line, _, _ in total.problems] == file.corrupt[:1000]
    assert total.problem_count == len(file.corrupt) == 2 * METERS
    assert (total.loaded, total.unchanged) == (len(file.said), file.again)
    kept = await loading.kept()
    assert {one.decode() for one in kept} == {*file.said, f"participant/{OPERATOR.participant_id}"}
    assert not any("9826" in message for _, _, message in total.problems), "no problem quotes a PAN"

    again = await loading.load(list(read_lines(path)))
    assert (again.loaded, again.unchanged) == (0, len(file.said) + file.again)
    assert [line for line, _, _ in again.problems] == file.corrupt[:1000]
    assert await loading.kept() == kept, "loading again changes nothing"


@pytest.mark.parametrize("seed", [4, 5])
async def test_a_load_that_broke_off_anywhere_goes_on_to_the_same_end(store: Store, tmp_path: Path, seed: int) -> None:
    file, chance = half_corrupt(seed), random.Random(seed)
    path = file.write(tmp_path / "half.jsonl")
    whole, broken = Loading(store, "whole-"), Loading(store, "broken-")
    for one in (whole, broken):
        await put_all(one.node, [OPERATOR])
    in_one_go = await whole.load(list(read_lines(path)))
    cuts = [0, *sorted(chance.sample(range(1, len(file.lines)), 4)), len(file.lines)]
    loaded, named = 0, []
    for after, until in itertools.pairwise(cuts):
        # The last part was carried out, and its answer was lost: some lines are told again.
        some = [one for one in read_lines(path, after=max(0, after - 30)) if one[0] <= until]
        total = await broken.load(some)
        loaded += total.loaded
        named += [line for line, _, _ in total.problems if line > after]
    assert loaded == in_one_go.loaded
    assert named == file.corrupt
    assert await broken.kept() == await whole.kept()


async def test_long_lines_are_sent_in_small_parts(loading: Loading, tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    remark = "€" * 19_000
    path.write_text("\n".join(json.dumps(changed(PSP_LINE, remark=remark), ensure_ascii=False) for _ in range(150)))
    total = await loading.load(list(read_lines(path)))
    assert (total.loaded, total.problem_count) == (0, 150)
    assert {message for _, _, message in total.problems} == {"remark: no field of this name is known here"}
