"""HsmSigner: the TokenSigner port over a pool of worker processes."""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NoReturn

from core.domain.errors import HsmUnavailable, KeyMissing, UtrnError
from core.domain.invariant import InvariantBroken
from core.domain.party import SupplierKey
from core.domain.token import Utrn
from core.ports.signer import SignRequest, TokenSigner
from hsm.config import HsmConfig
from hsm.pool import WorkerPool
from hsm.worker import Signed, Work

log = logging.getLogger(__name__)

_LOOK_AGAIN_S = 0.5
_KeyName = tuple[str, bytes]


class HsmSigner:
    """Signs with keys that stay in the HSM."""

    def __init__(self, config: HsmConfig) -> None:
        self._pool = WorkerPool(config)
        self._used: set[_KeyName] = set()
        self._lost: set[_KeyName] = set()

    @property
    def ready(self) -> bool:
        """True while the HSM can sign, and has every key it once signed with."""
        return self._pool.ready and not self._lost

    async def start(self) -> None:
        """Start the workers. To be called before gRPC is used in this process.

        Raises:
            HsmRefused: the HSM will not let us in as configured.
        """
        await self._pool.start()

    async def prove(self, keys: Iterable[SupplierKey]) -> list[SupplierKey]:
        """Find keys before they are needed, and run their known-answer tests; return those that are not there."""
        missing = []
        for key in keys:
            name = (key.key_id, key.public_point)
            while (found := await self._pool.has_key(*name)) is None:  # noqa: ASYNC110  # workers come back by time
                await asyncio.sleep(_LOOK_AGAIN_S)
            if found:
                self._used.add(name)
            else:
                missing.append(key)
        return missing

    async def run(self) -> NoReturn:
        """Keep the workers alive, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._pool.run())
            tasks.create_task(self._look_for_lost())
        raise InvariantBroken("keeping workers never ends by itself")

    async def sign(self, requests: Sequence[SignRequest]) -> Sequence[Utrn | UtrnError]:
        """Return one code or one error per request, in order.

        A key that has signed here before and is missing now was never missing in the registry: this node's HSM has
        been reset or replaced, and another node will do.
        """
        signed = await self._pool.sign([_work(request) for request in requests])
        return [self._judge(request, one) for request, one in zip(requests, signed, strict=True)]

    def _judge(self, request: SignRequest, signed: Signed) -> Signed:
        name = (request.key.key_id, request.key.public_point)
        if isinstance(signed, KeyMissing) and name in self._used:
            self._lost.add(name)
            log.error("a key that was in the HSM is gone, or is another one", extra={"key_id": request.key.key_id})
            return HsmUnavailable("this node's HSM has lost a key; repeat the same transaction_id")
        if not isinstance(signed, UtrnError):
            self._used.add(name)
            self._lost.discard(name)
        return signed

    async def _look_for_lost(self) -> NoReturn:
        """Ask after keys that were lost, until they are back: while they are, nobody else asks."""
        while True:
            await asyncio.sleep(_LOOK_AGAIN_S)
            for name in list(self._lost):
                if await self._pool.has_key(*name):
                    log.info("a key is back in the HSM", extra={"key_id": name[0]})
                    self._lost.discard(name)

    async def close(self) -> None:
        """End the workers."""
        await self._pool.close()


def _work(request: SignRequest) -> Work:
    """Return `request` as plain values: they cross to the worker in a tenth of the time."""
    key = request.key
    return (
        request.scheme,
        key.key_id,
        key.public_point,
        key.originator_id,
        request.meter_id,
        request.meter_point,
        request.counter,
        int(request.value.value_class),
        request.value.value,
    )


if TYPE_CHECKING:
    _: type[TokenSigner] = HsmSigner
