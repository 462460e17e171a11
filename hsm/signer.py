"""HsmSigner: the TokenSigner port over a pool of worker processes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from core.domain.errors import KeyMissing, UtrnError
from core.domain.participant import SupplierKey
from core.domain.utrn import Utrn
from core.ports.signer import KeyFinder, SignRequest, TokenSigner
from hsm.config import HsmConfig
from hsm.pool import WorkerFigures, WorkerPool
from hsm.worker import Work


class HsmSigner:
    """Signs with keys that stay in the HSM."""

    def __init__(self, config: HsmConfig) -> None:
        self._pool = WorkerPool(config)
        self._doubted: set[SupplierKey] = set()

    @property
    def ready(self) -> bool:
        """True while the HSM can sign. Whose keys it has is another question."""
        return self._pool.ready

    @property
    def failed_starts(self) -> int:
        """The count of starts of a worker that failed since the pool was made."""
        return self._pool.failed_starts

    @property
    def renewals(self) -> int:
        """The count of workers replaced after enough signatures, or for the memory in use, since the pool was made."""
        return self._pool.renewals

    def figures(self) -> list[WorkerFigures]:
        """Return how each worker is now."""
        return self._pool.figures()

    async def start(self) -> None:
        """Start the workers. To be called before gRPC is used in this process.

        Raises:
            HsmRefused: the HSM will not let us in as configured.
        """
        await self._pool.start()

    async def has_key(self, key: SupplierKey) -> bool | None:
        """Return whether the key is there now, and is the one it should be; None if nobody can say now."""
        return await self._pool.has_key(key.key_id, key.public_point)

    def doubted(self) -> set[SupplierKey]:
        """Return the keys that a signature did not find since this was last asked."""
        doubted, self._doubted = self._doubted, set()
        return doubted

    async def run(self) -> NoReturn:
        """Keep the workers alive, for ever."""
        await self._pool.run()

    async def sign(self, requests: Sequence[SignRequest]) -> Sequence[Utrn | UtrnError]:
        """Return one code or one error per request, in order."""
        signed = await self._pool.sign([_work(request) for request in requests])
        self._doubted |= {
            request.key for request, one in zip(requests, signed, strict=True) if isinstance(one, KeyMissing)
        }
        return signed

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
    __: type[KeyFinder] = HsmSigner
