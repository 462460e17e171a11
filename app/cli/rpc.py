"""How commands ask nodes: any one that answers, in service or not; no answer ends the command with the reason."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from app.cli.remedies import ADVICE
from app.terminal.invocation import invocation
from app.terminal.output import EXIT_FAILED, EXIT_USAGE, fail
from core.net.address import parse_address

if TYPE_CHECKING:
    import grpc
    from utrn_client.channel import Tls

_T = TypeVar("_T")
_CONNECT_S = 3.0
_NO_ADVICE = "see docs/errors.md"
# Facts that the sentence of a refusal says already.
_SAID = frozenset({"field", "kind", "because", "final"})


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

    try:
        return answer_of(ask, target, tls)
    except grpc.aio.AioRpcError as error:
        fail(told(error), code=EXIT_FAILED, refusal=refusal_json(error))


def answer_of(
    ask: "Callable[[grpc.aio.Channel], Coroutine[Any, Any, _T]]", target: str, tls: tuple[Path, Path, Path]
) -> _T:
    """Return what `ask` returns; end if the options are wrong.

    Raises:
        grpc.aio.AioRpcError: there is no answer, or a refusal.
    """
    from utrn_client.channel import Tls

    cert, key, ca = tls
    nodes, name = check_target(target), invocation().server_name
    check_certificates(cert, key, ca)
    names = [Tls(cert=cert, key=key, ca=ca, server_name=name or parse_address(node).host) for node in nodes]

    async def run() -> _T:
        async with contextlib.AsyncExitStack() as opened:
            return await ask(await _first_there(opened, nodes, names))

    return asyncio.run(run())


async def _first_there(
    opened: contextlib.AsyncExitStack, nodes: Sequence[str], names: "Sequence[Tls]"
) -> "grpc.aio.Channel":
    """Return a channel to the first node that is there and is who it should be; to the first of all if none is.

    Each node is known by a name of its own, so each has its channel. Not by health: a drained node, and one without
    its HSM, must be able to say so.
    """
    from utrn_client.channel import open_channel

    channels = [
        await opened.enter_async_context(open_channel([node], tls, by_health=False))
        for node, tls in zip(nodes, names, strict=True)
    ]
    async with asyncio.TaskGroup() as tasks:
        waits = {tasks.create_task(channel.channel_ready()): channel for channel in channels}
        # A first attempt may be too short for a busy machine. Nobody there: the call says why.
        done, rest = await asyncio.wait(waits, timeout=_CONNECT_S, return_when=asyncio.FIRST_COMPLETED)
        for wait in rest:
            wait.cancel()
    return next((waits[one] for one in done), channels[0])


def told(error: "grpc.aio.AioRpcError", *, advice: str = "") -> str:
    """Return why a node refused, in one line: the reason, its sentence, the facts, and `advice`, or ADVICE's."""
    from utrn_client.verdict import failure_of

    failure = failure_of(error)
    sentence = "; ".join(violation["description"] for violation in _violations(error)) or " ".join(
        failure.message.split()
    )
    do = advice or ADVICE.get(failure.reason, _NO_ADVICE)
    return f"{failure.reason}: {sentence}{facts_text(failure.facts)}; {do}"


def refusal_json(error: "grpc.aio.AioRpcError", *, advice: str = "", final: bool | None = None) -> dict[str, Any]:
    """Return why a node refused, with keys that are always the same: what `--json` prints.

    Args:
        error: The refusal.
        advice: What to do, if not ADVICE's.
        final: Whether it is final, where the command knows; else only if the node has closed the id.
    """
    from utrn_client.verdict import failure_of

    failure = failure_of(error)
    return {
        "reason": failure.reason,
        "status": error.code().name,
        "message": failure.message,
        "final": failure.fenced if final is None else final,
        "retry_ms": None if failure.retry_delay_s is None else round(failure.retry_delay_s * 1000),
        "facts": dict(sorted(failure.facts.items())),
        "field_violations": _violations(error),
        "advice": advice or ADVICE.get(failure.reason, _NO_ADVICE),
    }


def _violations(error: "grpc.aio.AioRpcError") -> list[dict[str, str]]:
    from google.rpc import error_details_pb2
    from utrn_client.verdict import details_of, unpacked

    bad = error_details_pb2.BadRequest()
    for detail in details_of(error):
        unpacked(detail, bad)
    return [{"field": violation.field, "description": violation.description} for violation in bad.field_violations]


def facts_text(facts: Mapping[str, str]) -> str:
    """Return the facts of a refusal as people read them, in brackets; "" for none that is not said already."""
    from core.domain.effective_dated import instant_of

    known = []
    for name, value in sorted(facts.items()):
        if name.endswith("_ms") and value.isdecimal():
            instant = instant_of(int(value)).replace(tzinfo=None)
            known.append(f"{name.removesuffix('_ms')} {instant.isoformat(timespec='milliseconds')}Z")
        elif name not in _SAID:
            known.append(f"{name} {value}")
    return f" ({', '.join(known)})" if known else ""


def check_certificates(cert: Path, key: Path, ca: Path) -> None:
    """Return if three PEM files are a certificate, its key and an authority; end with what is wrong if not."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    option, file = "--cert", cert
    try:
        mine = x509.load_pem_x509_certificate(cert.read_bytes()).public_key()
        option, file = "--ca", ca
        x509.load_pem_x509_certificates(ca.read_bytes())
        option, file = "--key", key
        private = load_pem_private_key(key.read_bytes(), None)
    except OSError as error:
        fail(f"{option} {file}: {error.strerror}; name a PEM file that can be read", code=EXIT_USAGE)
    except (ValueError, TypeError):
        what = "private key without a password" if option == "--key" else "certificate"
        fail(f"{option} {file}: no {what}; name a PEM file with one", code=EXIT_USAGE)
    if private.public_key() != mine:
        fail(f"--key {key}: not the key of {cert}; name the file that belongs to it", code=EXIT_USAGE)


def check_target(target: str) -> list[str]:
    """Return the nodes of a target; end with what is wrong with it."""
    nodes = target.split(",")
    try:
        for node in nodes:
            parse_address(node)
    except ValueError:
        fail(
            f"--target {target}: host:port is needed, as 127.0.0.1:8443 or [::1]:8443; a comma between several",
            code=EXIT_USAGE,
        )
    return nodes
