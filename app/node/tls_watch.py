"""NodeTls: a node's TLS while it runs. Files are looked at every second, and used as soon as they are whole again."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import grpc

from app.node.config import Config
from app.node.tls import BadTls, TlsMaterial, ends_of, read_tls
from core.api.peer_certificates import PeerCertificates, Trust
from core.ports.clock import Clock

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0
_SAY_AGAIN_S = 86_400.0
_Stamp = tuple[tuple[str, int, int, int], ...]


class NodeTls:
    """Certificates, keys, authorities and revocation lists of a node, as they are now.

    What is read anew holds at once: for new connections in the handshake, for those that stand at their next call.
    A file that cannot be used, because it is being replaced or is wrong, changes nothing and is a problem that is told.
    """

    def __init__(self, config: Config, clock: Clock) -> None:
        """Read everything.

        Raises:
            BadTls: names everything that is wrong.
        """
        self._config = config
        self._clock = clock
        self._seen = _stamp(config)
        self._material = read_tls(config)
        self._failed = ""
        self._changed = False
        self._said_at = -_SAY_AGAIN_S
        self.certificates = PeerCertificates(clock, self._material.trust)
        for one in self._material.shown:
            log.info(
                "tls", extra={"key": one.key, "use": one.use, "subject": one.subject, "ends": one.ends.isoformat()}
            )

    @property
    def trust(self) -> Trust:
        """Who vouches for whom, now."""
        return self._material.trust

    @property
    def problems(self) -> list[str]:
        """What must be mended: files that cannot be used, certificates that have expired or end soon."""
        failed = [f"TLS goes on with what it had: {line}" for line in self._failed.splitlines()]
        return failed + ends_of(self._material.shown, self._now())

    @property
    def unusable(self) -> int:
        """How many things are wrong with files that were not taken; 0 if all are in use as they are."""
        return len(self._failed.splitlines())

    def days_left(self) -> dict[tuple[str, str], float]:
        """Return days until the end of every certificate, by key and subject; fewer than 0 if it has expired."""
        now, left = self._now(), dict[tuple[str, str], float]()
        for one in self._material.shown:
            days = (one.ends - now).total_seconds() / 86_400
            left[one.key, one.subject] = min(days, left.get((one.key, one.subject), days))
        return left

    def credentials(self) -> grpc.ServerCredentials:
        """Return credentials that ask for a client certificate, and are as the files are at each handshake."""
        fetch: Any = self._fetch
        return grpc.dynamic_ssl_server_credentials(self._served(), fetch, require_client_authentication=True)

    def _served(self) -> grpc.ServerCertificateConfiguration:
        material = self._material
        return grpc.ssl_server_certificate_configuration([material.pair], root_certificates=material.roots)

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Return what is new since the last handshake, in gRPC's thread; None for no change."""
        if not self._changed:
            return None
        self._changed = False
        return self._served()

    async def run(self, renew: Sequence[Callable[[], Awaitable[None]]]) -> NoReturn:
        """Look at the files for ever; after each change await every one of `renew`: each holds connections."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            if self.look():
                for one in renew:
                    await one()

    def look(self) -> bool:
        """Read what has changed, and say what ends; return whether something new is in use."""
        stamp, read = _stamp(self._config), False
        if stamp != self._seen:
            self._seen = stamp
            read = self._read()
        if self._clock.monotonic() > self._said_at + _SAY_AGAIN_S:
            self._said_at = self._clock.monotonic()
            for problem in self.problems:
                log.warning("a certificate must be renewed", extra={"problem": problem})
        return read

    def _read(self) -> bool:
        try:
            material: TlsMaterial = read_tls(self._config)
        except BadTls as bad:
            self._failed = str(bad)
            log.error(  # noqa: TRY400  # what is wrong is in the message
                "tls files cannot be used; the ones before stay in use", extra={"problems": self._failed}
            )
            return False
        self._failed, self._material, self._changed = "", material, True
        self._said_at = -_SAY_AGAIN_S
        self.certificates.trust(material.trust)
        log.info("tls files read anew", extra={"certificates": len(material.shown)})
        return True

    def _now(self) -> datetime:
        return self._clock.wall()


def _stamp(config: Config) -> _Stamp:
    """Return what changes when a file does: of an atomic replacement, the inode; of one in place, size and time."""
    return tuple(_stamp_of(path) for path in tls_files(config).values())


def _stamp_of(path: Path) -> tuple[str, int, int, int]:
    try:
        stat = path.stat()
    except OSError as error:
        return str(path), error.errno or 0, 0, 0
    return str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns


def tls_files(config: Config) -> dict[str, Path]:
    """Return every file of a configuration that TLS uses, by its key."""
    parts: dict[str, object] = {"api": config.api, "etcd": config.etcd, "peers": config.peers}
    parts |= {f"head_ends.{head_end.name}": head_end for head_end in config.head_ends}
    found = {
        f"{name}.{key}": getattr(part, key, None)
        for name, part in parts.items()
        for key in ("cert", "key", "ca", "crl", "client_ca", "client_crl")
    }
    return {key: path for key, path in found.items() if isinstance(path, Path)}
