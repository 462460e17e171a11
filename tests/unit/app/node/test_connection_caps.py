"""Which connections are ended when there are too many, and that the kernel's table is read as gRPC names peers."""

import asyncio
import errno
import os
import socket
from pathlib import Path

import pytest

import app.node.connection_caps
from app.node.connection_caps import Connection, ConnectionCaps, established, shut_down

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def _at(number: int, host: str = "10.0.0.1") -> Connection:
    return Connection(inode=number, host=host, peer=f"ipv4:{host}:{number}")


def _caps(called: dict[str, str], *, per_address: int = 0, per_certificate: int = 0) -> ConnectionCaps:
    return ConnectionCaps(called, per_address=per_address, per_certificate=per_certificate)


def test_without_caps_nothing_is_ended() -> None:
    there = [_at(number) for number in range(5000)]
    assert not any(_caps({}).look(there, frozenset()).values())


def test_of_one_address_the_silent_are_ended_first_and_the_oldest_of_them_first() -> None:
    called = {_at(1).peer: "a", _at(4).peer: "a"}
    caps = _caps(called, per_address=3)
    assert caps.look([_at(1), _at(2), _at(3)], frozenset())["address"] == []
    # Two more come at once, of which one calls: what has been silent for longest goes.
    assert caps.look([_at(number) for number in (5, 4, 3, 2, 1)], frozenset())["address"] == [_at(3), _at(2)]


def test_of_those_that_call_the_newest_are_ended() -> None:
    called = {_at(number).peer: "a" for number in range(4)}
    caps = _caps(called, per_address=2)
    caps.look([_at(0), _at(1)], frozenset())
    assert caps.look([_at(3), _at(0), _at(1)], frozenset())["address"] == [_at(3)]


def test_one_certificate_is_capped_over_all_addresses_and_others_are_not() -> None:
    mine = [_at(number, f"10.0.0.{number}") for number in (1, 2, 3)]
    others = [_at(number, "10.0.1.1") for number in range(4, 9)]
    called = {one.peer: "mine" for one in mine} | {other.peer: f"{other.inode}" for other in others}
    beyond = _caps(called, per_address=5, per_certificate=2).look([*mine, *others], frozenset())
    assert (len(beyond["certificate"]), beyond["address"]) == (1, [])
    assert beyond["certificate"][0] in mine


def test_addresses_do_not_share_a_cap() -> None:
    there = [_at(number, f"10.0.0.{number % 4}") for number in range(8)]
    assert _caps({}, per_address=2).look(there, frozenset())["address"] == []


def test_who_is_gone_is_forgotten_and_who_came_meanwhile_is_not() -> None:
    called = {_at(1).peer: "a", _at(2).peer: "b"}
    caps = _caps(called, per_address=1)
    before = frozenset({_at(1).peer})
    caps.look([], before)
    assert called == {_at(2).peer: "b"}, "it called after the table had been read"


def test_the_kernels_table_is_read_as_grpc_names_peers(tmp_path: Path) -> None:
    four, six = tmp_path / "tcp", tmp_path / "tcp6"
    four.write_text(
        HEAD
        + "   0: 0100007F:1D13 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 11 1\n"
        + "   1: 0100007F:1D13 0100007F:D260 01 00000000:00000000 00:00000000 00000000 0 0 12 1\n"
        + "   2: 0100007F:D260 0100007F:1D13 01 00000000:00000000 00:00000000 00000000 0 0 13 1\n"
    )
    six.write_text(
        HEAD
        + "   0: 00000000000000000000000001000000:1D13 00000000000000000000000001000000:D261 01 0:0 0:0 0 0 0 14 1\n"
        + "   1: 0000000000000000FFFF00000100007F:1D13 0000000000000000FFFF00000200007F:D262 01 0:0 0:0 0 0 0 15 1\n"
    )
    assert established(0x1D13, [str(four), str(six), str(tmp_path / "absent")]) == [
        Connection(12, "127.0.0.1", "ipv4:127.0.0.1:53856"),
        Connection(14, "::1", "ipv6:%5B::1%5D:53857"),
        Connection(15, "127.0.0.2", "ipv4:127.0.0.2:53858"),
    ]


def test_a_table_that_cannot_be_read_is_no_empty_table(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="directory"):
        established(1, [str(tmp_path)])


async def test_a_look_that_the_machine_lacks_something_for_ends_no_node(monkeypatch: pytest.MonkeyPatch) -> None:
    called, looks, counted = {_at(1).peer: "a"}, 0, asyncio.Event()

    def lacks(_port: int) -> list[Connection]:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise OSError(errno.EMFILE, "too many open files")
        if looks == 2:
            raise RuntimeError("can't start new thread")
        loop.call_soon_threadsafe(counted.set)
        return [_at(1)]

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(app.node.connection_caps, "established", lacks)
    monkeypatch.setattr(app.node.connection_caps, "_LOOK_EVERY_S", 0.0)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(_caps(called, per_address=1).run(7443))
        await counted.wait()
        running.cancel()
    assert called == {_at(1).peer: "a"}, "who calls is not forgotten because nobody could look"


def test_shutting_down_leaves_every_other_descriptor_and_none_behind() -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    callers = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(2)]
    taken = [listening.accept()[0] for _ in callers]
    ended = Connection(os.fstat(taken[0].fileno()).st_ino, "127.0.0.1", "")
    before = sorted(os.listdir("/proc/self/fd"))
    try:
        assert shut_down([ended]) == 1
        assert sorted(os.listdir("/proc/self/fd")) == before, "a copy was left behind"
        assert callers[0].recv(1) == b""
        taken[1].sendall(b"x")
        assert callers[1].recv(1) == b"x"
    finally:
        for one in (listening, *callers, *taken):
            one.close()
