"""The HTTP server of a node's figures: a few threads, whoever comes; no connection lasts longer than a scrape takes."""

import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, exposition

from core.net.address import Address

_WORKERS: Final = 4
# Connections that are served or wait for a worker; more are closed.
_CONNECTIONS_MAX: Final = 32
_CONNECTION_S: Final = 10.0
# To write the page takes milliseconds of a core that the node needs: it is written once for all who ask for it soon.
_PAGE_S: Final = 1.0
# New connections a second, and how many at once; more are closed unread. A collector asks every few seconds.
_PER_S: Final = 50.0
_BURST: Final = 100.0


class _Handler(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Log nothing: a collector asks every few seconds."""


class _Page:
    """The page as a WSGI application: plain, and as old as `_PAGE_S` at most."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._writing = threading.Lock()
        self._text, self._until = b"", 0.0
        self.written = 0

    def __call__(self, environ: Mapping[str, Any], start: Callable[..., Any]) -> list[bytes]:
        del environ
        with self._writing:
            if time.monotonic() >= self._until:
                self._text = exposition.generate_latest(self._registry)
                self._until = time.monotonic() + _PAGE_S
                self.written += 1
            text = self._text
        start("200 OK", [("Content-Type", exposition.CONTENT_TYPE_LATEST), ("Content-Length", str(len(text)))])
        return [text]


class _Rate:
    """How many connections may still come."""

    def __init__(self) -> None:
        self._left, self._at = _BURST, time.monotonic()

    def take(self) -> bool:
        now = time.monotonic()
        self._left, self._at = min(_BURST, self._left + (now - self._at) * _PER_S), now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class MetricsServer(WSGIServer):
    """Serves a page by a few threads.

    A stranger who opens connections and says nothing, or little, or asks without end, keeps collectors away for a
    while; the node it costs these threads, one page a second, and some fifty connections a second.
    """

    request_queue_size = _CONNECTIONS_MAX

    def __init__(self, at: Address) -> None:
        """Bind and listen.

        Raises:
            OSError: the port is taken.
        """
        self.address_family = socket.getaddrinfo(at.host, at.port, type=socket.SOCK_STREAM)[0][0]
        self._room = threading.BoundedSemaphore(_CONNECTIONS_MAX)
        self._workers = ThreadPoolExecutor(_WORKERS, "metrics")
        self._rate = _Rate()
        self._open = set[socket.socket]()
        super().__init__((at.host, at.port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Have a worker serve a connection, or close it."""
        if not self._rate.take() or not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        self._open.add(request)
        try:
            self._workers.submit(self._serve, request, client_address)
        except RuntimeError:  # no thread can be started, or the server closes
            self._done(request)

    def _serve(self, request: socket.socket, client_address: Any) -> None:
        end = threading.Timer(_CONNECTION_S, _shut, [request])
        end.daemon = True
        try:
            end.start()
            self.finish_request(request, client_address)
        except (OSError, RuntimeError):
            pass  # it left, or had its time; or no thread can be started that ends it
        finally:
            end.cancel()
            self._done(request)

    def _done(self, request: socket.socket) -> None:
        self._open.discard(request)
        self.shutdown_request(request)
        self._room.release()

    def server_close(self) -> None:
        """Stop listening, and end every connection: none may keep the process from ending."""
        super().server_close()
        for request in list(self._open):
            _shut(request)
        self._workers.shutdown(wait=False, cancel_futures=True)


def _shut(request: socket.socket) -> None:
    try:
        request.shutdown(socket.SHUT_RDWR)
    except OSError:
        return


@contextmanager
def metrics_server(at: Address, registry: CollectorRegistry) -> Iterator[int]:
    """Serve the page of a registry for as long as the context lasts; yield the port.

    Raises:
        OSError: the port is taken.
    """
    server = MetricsServer(at)
    server.set_app(_Page(registry))
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
