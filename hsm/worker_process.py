"""WorkerProcess: the parent's end of one worker; starts it, asks it, and ends it within a bound."""

import asyncio
import logging
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from core.domain.errors import HsmUnavailable
from hsm.config import HsmConfig
from hsm.errors import HsmRefused, HsmUnfit
from hsm.worker import Signed, Work

log = logging.getLogger(__name__)

_START_WAIT_S = 20.0
_END_WAIT_S = 2.0
_END_POLL_S = 0.005
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class WorkerProcess:
    """One worker process: at most one batch under way.

    `idle`: logged in and asked nothing. `busy`: a batch is under way. Neither: not started, or failed.
    """

    def __init__(self, config: HsmConfig, pin: str | None = None) -> None:
        self._config = config
        self._pin = pin
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._reply: asyncio.Future[tuple[object, ...]] | None = None
        self.idle = False
        self.busy = False
        self.used_at = 0.0
        self.started_at = 0.0
        self.signatures = 0

    @property
    def ready(self) -> bool:
        """True while it is logged in."""
        return self.idle or self.busy

    @property
    def age_s(self) -> float:
        """Seconds since it logged in; 0 while it is not logged in."""
        return time.monotonic() - self.started_at if self.ready else 0.0

    def resident_bytes(self) -> int:
        """Return how much memory the process holds (RSS); 0 if that cannot be read now."""
        if self._process is None:
            return 0
        try:
            return int(Path(f"/proc/{self._process.pid}/statm").read_text(encoding="ascii").split()[1]) * _PAGE_BYTES
        except (OSError, ValueError, IndexError):
            return 0

    async def start(self) -> None:
        """Start the process and wait until it has logged in.

        Raises:
            HsmRefused: the HSM does not take the PIN; do not try again.
            HsmUnfit: a file of the configuration cannot be used.
            HsmUnavailable: try again; no descriptor, memory or process to be had is among the reasons.
        """
        try:
            self._spawn()
        except (OSError, MemoryError, RuntimeError) as error:
            raise HsmUnavailable(f"no HSM worker process can be started now: {error}") from error
        message = await self._next_reply(_START_WAIT_S)
        if message[0] == "refused":
            raise HsmRefused(str(message[1]))
        if message[0] == "unfit":
            raise HsmUnfit(str(message[1]))
        if message[0] != "ready":
            raise HsmUnavailable(f"the HSM cannot be used: {message[1]}")
        self.idle = True
        self.used_at = self.started_at = time.monotonic()

    async def sign(self, batch: list[Work], timeout_s: float) -> list[Signed]:
        """Return one answer per request, in order.

        Raises:
            HsmUnavailable: the worker failed and must be started again.
        """
        message = await self._ask(batch, timeout_s)
        if message[0] != "signed" or not isinstance(message[1], list):
            raise HsmUnavailable(f"the HSM failed: {message[1]}")
        self.idle = True
        self.signatures += len(batch)
        return message[1]

    async def has_key(self, key_id: str, public_point: bytes, timeout_s: float) -> bool:
        """Return whether the key is in the HSM, and is the one it should be.

        Raises:
            HsmUnavailable: the worker failed and must be started again.
        """
        message = await self._ask((key_id, public_point), timeout_s)
        if message[0] != "has":
            raise HsmUnavailable(f"the HSM failed: {message[1]}")
        self.idle = True
        return bool(message[1])

    def take(self) -> None:
        """Keep an idle worker for a batch that a task will bring: nobody else may ask it, or end it, in between."""
        self.idle, self.busy = False, True

    def kill(self) -> None:
        """Close the pipe and send SIGKILL: a worker leaves every other signal to its parent."""
        self.idle = False
        if self._pipe is not None:
            asyncio.get_running_loop().remove_reader(self._pipe.fileno())
            self._pipe.close()
            self._pipe = None
        if self._process is not None:
            self._process.kill()

    async def stop(self) -> None:
        """End the process, within two seconds; whatever it was doing is forgotten with all its handles."""
        self.kill()
        process = self._process
        until = time.monotonic() + _END_WAIT_S
        # No thread and no descriptor is needed for this: there may be none.
        while process is not None and process.poll() is None:
            if time.monotonic() > until:
                log.critical("an HSM worker does not end, not even by SIGKILL", extra={"pid": process.pid})
                return
            await asyncio.sleep(_END_POLL_S)
        self._process = None

    def _spawn(self) -> None:
        ours, theirs = multiprocessing.Pipe()
        try:
            # The same modules as here, whatever folder this is: without -P the current one would come first.
            path = os.pathsep.join(part for part in sys.path if part)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "hsm.worker", str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path},
            )
            ours.send((self._config, self._pin))
            asyncio.get_running_loop().add_reader(ours.fileno(), self._on_readable)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._pipe = ours

    async def _ask(self, question: Sequence[Work] | tuple[str, bytes], timeout_s: float) -> tuple[object, ...]:
        if self._pipe is None:
            raise HsmUnavailable("the HSM worker has ended")
        self.idle, self.busy = False, True
        self.used_at = time.monotonic()
        try:
            self._pipe.send(question)
            return await self._next_reply(timeout_s)
        except OSError as error:
            raise HsmUnavailable("the HSM worker has ended") from error
        finally:
            self.busy = False

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
