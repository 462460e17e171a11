"""A way to etcd on which transactions wait: a commit that is under way while something else happens."""

import asyncio
from typing import Any, cast

from etcdpb import rpc_pb2 as pb

from cluster.etcd.client import EtcdClient


class HeldClient:
    """Passes everything on, but lets no transaction through while it is held. `waiting` is set when one has come."""

    def __init__(self, client: EtcdClient) -> None:
        self._client = client
        self._open = asyncio.Event()
        self._open.set()
        self.waiting = asyncio.Event()

    def hold(self) -> None:
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    async def txn(self, request: pb.TxnRequest) -> pb.TxnResponse:
        if not self._open.is_set():
            self.waiting.set()
        await self._open.wait()
        return await self._client.txn(request)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    @property
    def as_client(self) -> EtcdClient:
        return cast("EtcdClient", self)
