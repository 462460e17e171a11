"""WorkerPool: starts workers, gives them batches, starts them again when they fail, renews those that have grown."""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from core.domain.errors import HsmUnavailable
from core.domain.invariant import InvariantBroken
from hsm.config import HsmConfig, is_descriptor, read_pin
from hsm.errors import HsmRefused, HsmUnfit
from hsm.worker import Signed, Work
from hsm.worker_process import WorkerProcess

log = logging.getLogger(__name__)

_MIB = 1 << 20
# A bound below what a worker needs in any case must not have it renewed without end.
_RENEW_GROWN_EVERY_S = 600.0
_LOOK_AGAIN_S = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFigures:
    """One worker as it is now: logged in or not, seconds since its log-in, signatures since, resident bytes."""

    ready: bool
    age_s: float
    signatures: int
    resident_bytes: int


class WorkerPool:
    """A few workers over one HSM token.

    Attributes:
        failed_starts: How often a worker could not be started, since the pool was made.
        renewals: How often a worker was replaced by a new one because of what it had signed or how it had grown.
    """

    def __init__(self, config: HsmConfig) -> None:
        self._config = config
        # A descriptor is this process's own, and most can be read once: workers are told what was in it.
        self._pin = read_pin(config) if is_descriptor(config.pin_file) else None
        self._workers = [WorkerProcess(config, self._pin) for _ in range(config.workers)]
        # Those that come, and those that go, beside the ones that are asked.
        self._others: set[WorkerProcess] = set()
        self._refused: HsmRefused | None = None
        # Held while a worker is asked for something that no sale waits for.
        self._asking = asyncio.Lock()
        # Held while a worker is renewed: one after the other, so that the others' secrets stay at hand.
        self._renewing = asyncio.Lock()
        self.failed_starts = 0
        self.renewals = 0

    @property
    def ready(self) -> bool:
        """True while at least one worker is logged in."""
        return any(worker.ready for worker in self._workers)

    def figures(self) -> list[WorkerFigures]:
        """Return how each worker is now."""
        return [
            WorkerFigures(
                ready=worker.ready,
                age_s=worker.age_s,
                signatures=worker.signatures,
                resident_bytes=worker.resident_bytes(),
            )
            for worker in self._workers
        ]

    async def start(self) -> None:
        """Start every worker once; those that could not start are tried again by `run`.

        Raises:
            HsmRefused: the HSM will not let us in as configured, or a file of the configuration cannot be used.
        """
        # One after the other: a wrong PIN is tried once, not once per worker.
        for worker in self._workers:
            try:
                await worker.start()
            except HsmUnavailable as error:
                self._note_failed_start(error.message)

    async def run(self) -> NoReturn:
        """Start failed workers again, for ever, with back-off; renew those that are due."""
        async with asyncio.TaskGroup() as tasks:
            for place in range(len(self._workers)):
                tasks.create_task(self._keep(place))
        raise InvariantBroken("keeping workers never ends by itself")

    async def sign(self, batch: Sequence[Work]) -> list[Signed]:
        """Return one code or one error per request, in order; a batch is spread over idle workers."""
        idle = [worker for worker in self._workers if worker.idle]
        if not idle and self._asking.locked():
            # The only worker is looking for a key, or says that it lives: a moment that must not refuse a sale.
            async with self._asking:
                idle = [worker for worker in self._workers if worker.idle]
        if not idle:
            return [HsmUnavailable("no HSM worker is ready; repeat the same transaction_id") for _ in batch]
        # A share below this costs more in passing it over than it saves.
        share = max(16, -(-len(batch) // len(idle)))
        parts = [list(batch[at : at + share]) for at in range(0, len(batch), share)]
        if len(parts) == 1:
            return await self._sign(idle[0], parts[0])
        taken = idle[: len(parts)]
        for one in taken:
            one.take()
        try:
            async with asyncio.TaskGroup() as tasks:
                signing = [tasks.create_task(self._sign(one, part)) for one, part in zip(taken, parts, strict=True)]
        except BaseException:
            for one in taken:
                one.busy = False
            raise
        return [signed for task in signing for signed in task.result()]

    async def has_key(self, key_id: str, public_point: bytes) -> bool | None:
        """Return whether a worker finds the key, and it is the one it should be; None if none can say now."""
        async with self._asking:
            idle = next((worker for worker in self._workers if worker.idle), None)
            if idle is None:
                return None
            try:
                return await idle.has_key(key_id, public_point, self._config.sign_deadline_ms / 1000)
            except HsmUnavailable as error:
                log.warning("an HSM worker failed", extra={"error": error.message})
                return None

    async def close(self) -> None:
        """End every worker, within a few seconds, whatever state each is in."""
        every = [*self._workers, *self._others]
        for one in every:
            one.kill()
        async with asyncio.TaskGroup() as tasks:
            for one in every:
                tasks.create_task(one.stop())

    async def _sign(self, process: WorkerProcess, part: list[Work]) -> list[Signed]:
        try:
            return await process.sign(part, self._config.sign_deadline_ms / 1000)
        except HsmUnavailable as error:
            # The worker stays out of use, neither idle nor busy, until `run` has started it anew.
            log.warning("an HSM worker failed", extra={"error": error.message})
            return [error for _ in part]

    async def _keep(self, place: int) -> NoReturn:
        pause_ms = self._config.restart_first_ms
        while True:
            await asyncio.sleep(pause_ms / 1000)
            one = self._workers[place]
            if not one.ready:
                well = self._refused is not None or await self._restart(one)
            elif one.idle and self._due(one):
                well = await self._renew(place)
            else:
                well = True
                # An HSM that fails while nobody asks must not be found out by a sale.
                if one.idle and time.monotonic() - one.used_at > self._config.probe_ms / 1000:
                    await self._probe(one)
            pause_ms = self._config.restart_first_ms if well else min(2 * pause_ms, self._config.restart_most_ms)

    async def _probe(self, process: WorkerProcess) -> None:
        async with self._asking:
            if process.idle:
                await self._sign(process, [])

    async def _restart(self, process: WorkerProcess) -> bool:
        await process.stop()
        return await self._start(process)

    async def _renew(self, place: int) -> bool:
        """Put a new worker where an old one is, which goes on signing until the new one has logged in."""
        async with self._renewing:
            coming = WorkerProcess(self._config, self._pin)
            self._others.add(coming)
            started = await self._start(coming)
            old = self._workers[place]
            while started and old.busy:  # noqa: ASYNC110  # a batch is bounded by sign_deadline_ms
                await asyncio.sleep(_LOOK_AGAIN_S)
            going = coming
            if started:
                self._workers[place], going = coming, old
                self._others = self._others - {coming} | {old}
                self.renewals += 1
                log.info("an HSM worker is renewed", extra={"signatures": old.signatures, "rss": old.resident_bytes()})
            await going.stop()
            self._others.discard(going)
            return started

    def _due(self, process: WorkerProcess) -> bool:
        """Return whether a worker has signed, or has grown, as much as it may."""
        if process.signatures >= self._config.renew_after:
            return True
        return process.age_s > _RENEW_GROWN_EVERY_S and process.resident_bytes() > self._config.renew_above_mib * _MIB

    async def _start(self, process: WorkerProcess) -> bool:
        """Return whether a worker has started; a failure is noted, and the node goes on with the workers it has."""
        try:
            await process.start()
        except HsmUnfit as error:
            self._note_failed_start(str(error))
        except HsmRefused as refused:
            log.critical("the HSM refuses this node", extra={"error": str(refused)})
            self._refused = refused
            self.failed_starts += 1
        except HsmUnavailable as error:
            self._note_failed_start(error.message)
        else:
            return True
        return False

    def _note_failed_start(self, why: str) -> None:
        self.failed_starts += 1
        log.warning("an HSM worker did not start", extra={"error": why})
