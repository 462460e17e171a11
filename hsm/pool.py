"""WorkerPool: starts workers, gives them batches, and starts them again when they fail."""

import asyncio
import logging
import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import NoReturn

from core.domain.errors import HsmUnavailable
from core.domain.invariant import InvariantBroken
from hsm import worker
from hsm.config import HsmConfig
from hsm.errors import HsmRefused
from hsm.worker import Signed, Work

log = logging.getLogger(__name__)

_START_WAIT_S = 20.0
_END_WAIT_S = 2.0


class _Worker:
    """The parent's end of one worker: at most one batch under way."""

    def __init__(self, config: HsmConfig) -> None:
        self._config = config
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None
        self._reply: asyncio.Future[tuple[object, ...]] | None = None
        self.idle = False
        self.busy = False
        self.used_at = 0.0

    async def start(self) -> None:
        """Start the process and wait until it has logged in.

        Raises:
            HsmRefused: the HSM will not let us in; do not try again.
            HsmUnavailable: try again.
        """
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._process = context.Process(target=worker.main, args=(theirs, self._config), daemon=True, name="utrn-hsm")
        self._process.start()
        theirs.close()
        self._pipe = ours
        asyncio.get_running_loop().add_reader(ours.fileno(), self._on_readable)
        message = await self._next_reply(_START_WAIT_S)
        if message[0] == "refused":
            raise HsmRefused(str(message[1]))
        if message[0] != "ready":
            raise HsmUnavailable(f"the HSM cannot be used: {message[1]}")
        self.idle = True
        self.used_at = time.monotonic()

    async def sign(self, batch: list[Work], timeout_s: float) -> list[Signed]:
        """Return one answer per request, in order.

        Raises:
            HsmUnavailable: the worker failed and must be started again.
        """
        if self._pipe is None:
            raise HsmUnavailable("the HSM worker has ended")
        self.idle, self.busy = False, True
        self.used_at = time.monotonic()
        try:
            self._pipe.send(batch)
            message = await self._next_reply(timeout_s)
        except OSError as error:
            raise HsmUnavailable("the HSM worker has ended") from error
        finally:
            self.busy = False
        if message[0] != "signed" or not isinstance(message[1], list):
            raise HsmUnavailable(f"the HSM failed: {message[1]}")
        self.idle = True
        return message[1]

    async def has_key(self, key_id: str, public_point: bytes, timeout_s: float) -> bool:
        """Return whether the key is in the HSM, and is the one it should be.

        Raises:
            HsmUnavailable: the worker failed and must be started again.
        """
        if self._pipe is None:
            raise HsmUnavailable("the HSM worker has ended")
        self.idle, self.busy = False, True
        try:
            self._pipe.send((key_id, public_point))
            message = await self._next_reply(timeout_s)
        except OSError as error:
            raise HsmUnavailable("the HSM worker has ended") from error
        finally:
            self.busy = False
        if message[0] != "has":
            raise HsmUnavailable(f"the HSM failed: {message[1]}")
        self.idle = True
        return bool(message[1])

    async def stop(self) -> None:
        """End the process; whatever it was doing is forgotten with all its handles."""
        self.idle = False
        if self._pipe is not None:
            asyncio.get_running_loop().remove_reader(self._pipe.fileno())
            self._pipe.close()
            self._pipe = None
        if self._process is not None:
            self._process.kill()
            await asyncio.to_thread(self._process.join, _END_WAIT_S)
            self._process = None

    async def _next_reply(self, timeout_s: float) -> tuple[object, ...]:
        self._reply = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout_s):
                return await self._reply
        except TimeoutError:
            return ("down", f"no answer within {timeout_s:.1f} s")
        finally:
            self._reply = None

    def _on_readable(self) -> None:
        if self._pipe is None:
            return
        try:
            message = self._pipe.recv()
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(self._pipe.fileno())
            self.idle = False
            message = ("down", "the worker process ended")
        if self._reply is not None and not self._reply.done():
            self._reply.set_result(message)


class WorkerPool:
    """A few workers over one HSM token."""

    def __init__(self, config: HsmConfig) -> None:
        self._config = config
        self._workers = [_Worker(config) for _ in range(config.workers)]
        self._refused: HsmRefused | None = None
        # Held while a worker is asked for something that no sale waits for.
        self._asking = asyncio.Lock()

    @property
    def ready(self) -> bool:
        """True while at least one worker is logged in."""
        return any(one.idle or one.busy for one in self._workers)

    async def start(self) -> None:
        """Start every worker once; those that could not start are tried again by `run`.

        Raises:
            HsmRefused: the HSM will not let us in as configured.
        """
        # One after the other: a wrong PIN is tried once, not once per worker.
        for one in self._workers:
            await self._try(one)
            if self._refused is not None:
                raise self._refused

    async def run(self) -> NoReturn:
        """Start failed workers again, for ever, with back-off."""
        async with asyncio.TaskGroup() as tasks:
            for one in self._workers:
                tasks.create_task(self._keep(one))
        raise InvariantBroken("keeping workers never ends by itself")

    async def sign(self, batch: Sequence[Work]) -> list[Signed]:
        """Return one code or one error per request, in order; a batch is spread over idle workers."""
        idle = [one for one in self._workers if one.idle]
        if not idle and self._asking.locked():
            # The only worker is looking for a key, or says that it lives: a moment that must not refuse a sale.
            async with self._asking:
                idle = [one for one in self._workers if one.idle]
        if not idle:
            return [HsmUnavailable("no HSM worker is ready; repeat the same transaction_id") for _ in batch]
        # A share below this costs more in passing it over than it saves.
        share = max(16, -(-len(batch) // len(idle)))
        parts = [list(batch[at : at + share]) for at in range(0, len(batch), share)]
        if len(parts) == 1:
            return await self._sign(idle[0], parts[0])
        async with asyncio.TaskGroup() as tasks:
            signing = [tasks.create_task(self._sign(one, part)) for one, part in zip(idle, parts, strict=False)]
        return [signed for task in signing for signed in task.result()]

    async def has_key(self, key_id: str, public_point: bytes) -> bool | None:
        """Return whether a worker finds the key, and it is the one it should be; None if none can say now."""
        async with self._asking:
            idle = next((one for one in self._workers if one.idle), None)
            if idle is None:
                return None
            try:
                return await idle.has_key(key_id, public_point, self._config.sign_deadline_ms / 1000)
            except HsmUnavailable as error:
                log.warning("an HSM worker failed", extra={"error": error.message})
                return None

    async def close(self) -> None:
        """End every worker."""
        for one in self._workers:
            await one.stop()

    async def _sign(self, one: _Worker, part: list[Work]) -> list[Signed]:
        try:
            return await one.sign(part, self._config.sign_deadline_ms / 1000)
        except HsmUnavailable as error:
            # The worker stays out of use, neither idle nor busy, until `run` has started it anew.
            log.warning("an HSM worker failed", extra={"error": error.message})
            return [error for _ in part]

    async def _keep(self, one: _Worker) -> NoReturn:
        pause_ms = self._config.restart_first_ms
        while True:
            await asyncio.sleep(pause_ms / 1000)
            if one.idle or one.busy:
                pause_ms = self._config.restart_first_ms
                # An HSM that fails while nobody asks must not be found out by a sale.
                if one.idle and time.monotonic() - one.used_at > self._config.probe_ms / 1000:
                    await self._probe(one)
            elif self._refused is None:
                await one.stop()
                await self._try(one)
                pause_ms = min(2 * pause_ms, self._config.restart_most_ms)

    async def _probe(self, one: _Worker) -> None:
        async with self._asking:
            if one.idle:
                await self._sign(one, [])

    async def _try(self, one: _Worker) -> None:
        try:
            await one.start()
        except HsmRefused as refused:
            log.critical("the HSM refuses this node", extra={"error": str(refused)})
            self._refused = refused
        except HsmUnavailable as error:
            log.warning("an HSM worker did not start", extra={"error": error.message})
