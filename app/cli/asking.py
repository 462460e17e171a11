"""How commands ask nodes: any one that answers, in service or not; no answer ends the command with the reason."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from app.cli.output import EXIT_FAILED, EXIT_USAGE, fail

if TYPE_CHECKING:
    import grpc

_T = TypeVar("_T")


def ask_nodes(
    ask: "Callable[[grpc.aio.Channel], Coroutine[Any, Any, _T]]", target: str, tls: tuple[Path, Path, Path]
) -> _T:
    """Return what `ask` returns; end with the reason, and what to do, if there is none.

    Args:
        ask: Makes the call.
        target: host:port of nodes, comma between them.
        tls: PEM files: certificate, private key, the nodes' authority.
    """
    import grpc
    from utrn_client.channel import Tls, open_channel, reason_of

    async def run() -> _T:
        cert, key, ca = tls
        # Not by health: a drained node, and one without its HSM, must be able to say so.
        async with open_channel(target.split(","), Tls(cert=cert, key=key, ca=ca), by_health=False) as channel:
            return await ask(channel)

    try:
        return asyncio.run(run())
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}", code=EXIT_USAGE)
    except grpc.aio.AioRpcError as error:
        fail(f"{reason_of(error)}: {error.details()}", code=EXIT_FAILED)
