"""A client whose watches lose events without a word, as etcd 3.4.23 does after a progress notification."""

from collections.abc import AsyncIterator, Callable, Sequence

from etcdpb import rpc_pb2 as pb

from cluster.etcd.client import EtcdClient

Loses = Callable[[pb.Event], bool]


class LosingClient:
    """Stands where an EtcdClient stands; its watches leave out every event that `loses` says, and go on after it."""

    def __init__(self, client: EtcdClient, loses: Loses) -> None:
        self._client = client
        self.loses = loses
        self.lost = 0

    async def watch(self, prefix: bytes, after_revision: int) -> AsyncIterator[pb.WatchResponse]:
        async for reply in self._client.watch(prefix, after_revision):
            kept = pb.WatchResponse(
                header=reply.header, events=[event for event in reply.events if not self.loses(event)]
            )
            self.lost += len(reply.events) - len(kept.events)
            # As a progress reply, if nothing is left: it claims to have told everything.
            yield kept

    async def txn(self, request: pb.TxnRequest) -> pb.TxnResponse:
        return await self._client.txn(request)

    async def read(self, request: pb.TxnRequest) -> pb.TxnResponse:
        return await self._client.read(request)

    async def range(self, request: pb.RangeRequest) -> pb.RangeResponse:
        return await self._client.range(request)

    async def list_prefix(self, prefix: bytes) -> tuple[list[pb.KeyValue], int]:
        return await self._client.list_prefix(prefix)

    async def pages(
        self, prefix: bytes, *, keys_only: bool = False
    ) -> AsyncIterator[tuple[Sequence[pb.KeyValue], int]]:
        async for page in self._client.pages(prefix, keys_only=keys_only):
            yield page
