"""Runs one node: the root TaskGroup, the order of starting and of leaving, and the signals."""

import asyncio
import faulthandler
import logging
import resource
import signal
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from typing import Any, NoReturn

import grpc
import uvloop

from app.node.assembly import Node
from app.node.logging import plain_stderr
from app.node.metrics import serve_metrics
from cluster.codec.vend import NewerSchema
from cluster.ledger.identity import LedgerUnfit
from cluster.ledger.state_file import UnreadableState
from core.api.interceptor import Interceptor
from core.api.limits import CallerLimits
from core.api.server import build_server
from core.domain.invariant import InvariantBroken
from core.metrics import StageTimes

log = logging.getLogger(__name__)

EXIT_CLEAN = 0
EXIT_INVARIANT_BROKEN = 70
EXIT_PART_ENDED = 71
EXIT_REFUSED = 78
DESCRIPTORS_NEEDED = 16_384
_REPORT_EVERY_S = 30.0
_CALLERS_LEAVE_S = 0.3
_LAST_CALLS_S = 0.2
_LOOK_AGAIN_S = 0.01
_STREAMS_END_S = 0.1
# What the end of a node may take beyond the calls it finishes: sockets, leases, workers, threads.
_END_S = 10.0


def serve(build: Callable[[], Node]) -> int:
    """Run the node that `build` returns until SIGTERM or SIGINT; return the exit code.

    A node that has begun to end does end: what hangs beyond `api.drain_s` and ten seconds is broken off with exit code
    1 and every thread's stack on standard error. Workers end with this process.

    Returns:
        0 after a clean leave; 70 if a promise of this program did not hold; 71 if a part of the node ended that should
        run as long as it; 78 if the node does not fit the ledger.

    Raises:
        OSError: a port is taken or a file cannot be read.
        HsmRefused: the HSM refuses the PIN or the token is not there.
    """
    runner, code = asyncio.Runner(loop_factory=uvloop.new_event_loop), EXIT_CLEAN
    try:
        runner.run(_serve(build()))
    except (BaseExceptionGroup, InvariantBroken) as ended:
        code = _code_of(ended)
    finally:
        _close_loop(runner)
    return code


def raise_descriptors() -> None:
    """Raise this process's limit of descriptors to what the machine allows, and log the limit.

    Idle connections of strangers take one each until their handshake's time is over (`api.handshake_s`): with the 1,024
    that a shell gives, a thousand of them shut everybody else out.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    log.info("descriptors", extra={"most": hard, "before": soft})
    if hard != resource.RLIM_INFINITY and hard < DESCRIPTORS_NEEDED:
        log.warning(
            "few descriptors: a thousand idle connections shut callers out; raise the limit (LimitNOFILE, ulimits)",
            extra={"most": hard, "needed": DESCRIPTORS_NEEDED},
        )


def _close_loop(runner: asyncio.Runner) -> None:
    """Close the event loop; what the machine lacks for that must not hide why the node ends."""
    try:
        runner.close()
    except (OSError, RuntimeError) as error:
        log.warning("the event loop cannot be closed", extra={"error": str(error)})


def _code_of(ended: BaseException) -> int:
    """Return the exit code for what has ended the node, and log why."""
    errors = _leaves(ended) if isinstance(ended, BaseExceptionGroup) else [ended]
    if any(isinstance(error, InvariantBroken) for error in errors):
        log.critical("a promise of this program does not hold", exc_info=ended)
        return EXIT_INVARIANT_BROKEN
    if all(isinstance(error, LedgerUnfit | UnreadableState | NewerSchema) for error in errors):
        for error in errors:
            log.critical("this node does not fit the ledger", extra={"error": str(error)})
        return EXIT_REFUSED
    log.critical("this node ends, for a part of it has ended; start it again", exc_info=ended)
    return EXIT_PART_ENDED


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """Return the errors of a group, and of the groups in it."""
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


class _Stop:
    """Why and when the node leaves."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self._broken: InvariantBroken | None = None

    def ask(self) -> None:
        """Leave in good order."""
        self._asked.set()

    def broken(self, broken: InvariantBroken) -> None:
        """Leave at once."""
        self._broken = broken
        self._asked.set()

    async def wait(self) -> None:
        """Return when asked to leave; raise InvariantBroken if that is why."""
        await self._asked.wait()
        if self._broken is not None:
            raise self._broken


async def _serve(node: Node) -> None:
    stop = _Stop()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.ask)
    try:
        # The HSM workers are started before gRPC is: they must not inherit its threads.
        await node.signer.start()
        await _run(node, stop)
    finally:
        _must_end(_END_S)
        # They leave signals to this node.
        await node.signer.close()


async def _run(node: Node, stop: _Stop) -> None:
    api = node.config.api
    limits = CallerLimits(
        calls_max=api.caller_calls_max,
        watches_max=api.caller_watches_max,
        refusals_per_s=api.caller_refusals_per_s,
    )
    interceptor = Interceptor(node.authenticate, stop.broken, node.note, limits)
    server, port = build_server(node.config.api, node.services, interceptor, node.tls.credentials())
    try:
        with serve_metrics(node, interceptor):
            async with asyncio.TaskGroup() as tasks:
                # Listening comes before the lease: a peer that finds nobody listening takes a lease away.
                await server.start()
                running = [tasks.create_task(_for_life(part)) for part in _parts(node, port)]
                log.info("listening", extra={"node_id": node.config.node.node_id, "port": port})
                await stop.wait()
                _must_end(node.config.api.drain_s + _END_S)
                log.info("leaving")
                await _leave(node, server, interceptor)
                for task in running:
                    task.cancel()
    finally:
        _must_end(_END_S)
        await server.stop(grace=None)
        await _close(node)


def _must_end(seconds: float) -> None:
    """Have the process end by then, whatever hangs: nobody starts a node again that neither serves nor ends."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=plain_stderr())


async def _for_life(part: Coroutine[Any, Any, NoReturn]) -> None:
    """Run a part of the node; what ends it ends the node, though others may be slow to notice."""
    try:
        await part
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        log.critical(
            "a part of this node has ended", extra={"part": getattr(part, "__qualname__", ""), "error": repr(error)}
        )
        _must_end(_END_S)
        raise


def _parts(node: Node, port: int) -> list[Coroutine[Any, Any, NoReturn]]:
    """Return what runs for as long as the node does."""
    return [
        node.signer.run(),
        node.registry.run(),
        node.changes.run(),
        node.audit_log.run(),
        node.ledger.watch.run(),
        node.ledger.space.run(),
        node.cluster.ownership.run(),
        node.cluster.peers.run(),
        node.cluster.suspicions.run(),
        node.outbox.run(),
        node.line.run(),
        node.ceilings.run(),
        node.delivery.run(),
        node.head_end_states.run(),
        node.services.health.run(),
        node.loop_delay.run(),
        node.time.run(),
        node.connection_caps.run(port),
        node.tls.run([node.client.renew, *(head_end.renew for head_end in node.head_ends.values())]),
        _watch_keys(node),
        _report(node.times),
    ]


async def _leave(node: Node, server: grpc.aio.Server, interceptor: Interceptor) -> None:
    """Send callers elsewhere, give the shards to others, finish what was admitted."""
    node.services.health.leave()
    # Deliveries break off where they are: their state is in the ledger, and the next owner goes on from there.
    await node.cluster.ownership.leave()
    node.services.peer.leave()
    # Callers are told by their health watch, and those that call nevertheless are served, until they have had time.
    await asyncio.sleep(_CALLERS_LEAVE_S)
    async with asyncio.timeout(node.config.api.drain_s):
        await node.line.drain()
        await node.ceilings.give_back()
        # Calls that are on their way are told SHUTTING_DOWN: grpc would cancel what it has not yet handed to us.
        await asyncio.sleep(_LAST_CALLS_S)
        while interceptor.calls:  # noqa: ASYNC110  # the last moments of a process; an event would be set on every call
            await asyncio.sleep(_LOOK_AGAIN_S)
    await server.stop(grace=_STREAMS_END_S)


async def _close(node: Node) -> None:
    await node.cluster.ownership.leave()
    for head_end in node.head_ends.values():
        await head_end.close()
    for client in (node.client, node.cluster.client):
        await client.close()
    _report_once(node.times)
    log.info("left")


async def _watch_keys(node: Node) -> NoReturn:
    """Find and prove every supplier's key before its first sale: standby means ready. New suppliers' too."""
    await node.registry.complete()
    await node.keys.run()


async def _report(times: StageTimes) -> NoReturn:
    while True:
        await asyncio.sleep(_REPORT_EVERY_S)
        _report_once(times)


def _report_once(times: StageTimes) -> None:
    log.info("stage times", extra={"stages": {stage: asdict(summary) for stage, summary in times.summary().items()}})
