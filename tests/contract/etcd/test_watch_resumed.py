"""A watch is resumed after the events that were received, whatever a progress reply claims (upstream issue 15220)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import grpc
from etcdpb import rpc_pb2 as pb
from etcdpb import rpc_pb2_grpc as rpc

from cluster.config import EtcdConfig
from cluster.etcd.client import EtcdClient

_KEYS = 12


class HastyMember(rpc.WatchServicer):
    """An etcd member as 3.4.23 is under load: its progress replies run ahead of its events, and its streams break.

    Each stream sends two events, then claims to be at the end of history, and breaks. `starts`: where streams began.
    """

    def __init__(self) -> None:
        self.starts: list[int] = []

    async def Watch(  # noqa: N802
        self,
        requests: AsyncIterator[pb.WatchRequest],
        context: "grpc.aio.ServicerContext[pb.WatchRequest, pb.WatchResponse]",
    ) -> AsyncIterator[pb.WatchResponse]:
        async for request in requests:
            start = request.create_request.start_revision
            self.starts.append(start)
            yield _reply(_KEYS, created=True)
            for revision in range(start, min(start + 2, _KEYS + 1)):
                yield _reply(revision, events=[_event(revision)])
            yield _reply(_KEYS)
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the connection was reset")


def _reply(revision: int, *, created: bool = False, events: "list[pb.Event] | None" = None) -> pb.WatchResponse:
    reply = pb.WatchResponse(created=created, events=events or [])
    reply.header.revision = revision
    return reply


def _event(revision: int) -> pb.Event:
    return pb.Event(type=pb.Event.PUT, kv=pb.KeyValue(key=b"w/%d" % revision, mod_revision=revision))


@asynccontextmanager
async def served(member: HastyMember) -> AsyncIterator[EtcdClient]:
    server = grpc.aio.server()
    rpc.add_WatchServicer_to_server(member, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    client = EtcdClient(EtcdConfig(endpoints=(f"127.0.0.1:{port}",)))
    try:
        yield client
    finally:
        await client.close()
        await server.stop(grace=None)


async def test_a_progress_reply_that_runs_ahead_of_events_loses_none() -> None:
    member, heard = HastyMember(), list[int]()
    async with served(member) as client:
        with suppress(TimeoutError):
            async with asyncio.timeout(20):
                async for reply in client.watch(b"w/", 0):
                    heard += [event.kv.mod_revision for event in reply.events]
                    if heard and heard[-1] == _KEYS:
                        break
    assert heard == list(range(1, _KEYS + 1))
    assert member.starts == list(range(1, _KEYS, 2))
