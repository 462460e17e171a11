"""The server of a node's figures: what strangers on its port cost, and that it answers when they are gone."""

import http.client
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Gauge

import app.node.metrics_server
from app.node.metrics_server import metrics_server
from core.net.address import Address
from tests.support.patience import PATIENCE_S

pytestmark = [pytest.mark.slow]

HOST = "127.0.0.1"


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(app.node.metrics_server, "_CONNECTION_S", 0.5)
    registry = CollectorRegistry()
    Gauge("utrn_test", "A figure.", registry=registry).set(7)
    with metrics_server(Address(HOST, 0), registry) as port:
        yield port


def _page(port: int) -> str:
    connection = http.client.HTTPConnection(HOST, port, timeout=PATIENCE_S)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return text


def _served_page(port: int) -> str:
    """Return the page once there is room to be served."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return _page(port)
        except (ConnectionError, http.client.HTTPException):
            assert time.monotonic() < until


def test_a_collector_is_served(port: int) -> None:
    assert "utrn_test 7.0" in _page(port)


@pytest.mark.parametrize("page_s", [3600.0, 0.0], ids=["kept", "the control"])
def test_the_page_is_written_once_for_all_who_ask_for_it_soon(monkeypatch: pytest.MonkeyPatch, page_s: float) -> None:
    monkeypatch.setattr(app.node.metrics_server, "_PAGE_S", page_s)
    page = app.node.metrics_server._Page(CollectorRegistry())
    for _ in range(20):
        page({}, lambda *_: None)
    assert page.written == (1 if page_s else 20)


def test_whoever_asks_without_end_is_closed_unread_and_a_collector_is_served_after_it(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.node.metrics_server, "_BURST", 5.0)
    monkeypatch.setattr(app.node.metrics_server, "_PER_S", 2.0)
    closed = 0
    for _ in range(30):
        try:
            _page(port)
        except (ConnectionError, http.client.HTTPException):
            closed += 1
    assert closed > 15
    assert "utrn_test" in _served_page(port)


def test_silent_connections_cost_a_few_threads_and_a_collector_is_served_after_them(port: int) -> None:
    before = threading.active_count()
    silent = [socket.create_connection((HOST, port), timeout=PATIENCE_S) for _ in range(100)]
    try:
        assert silent[-1].recv(1) == b"", "what is beyond the room is closed"
        # The workers, a timer for what each serves.
        assert threading.active_count() - before <= 2 * app.node.metrics_server._WORKERS
        assert "utrn_test" in _served_page(port), "they have had their time"
    finally:
        for one in silent:
            one.close()


def test_a_connection_that_drips_does_not_hold_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app.node.metrics_server, "_CONNECTION_S", 600.0)
    with metrics_server(Address(HOST, 0), CollectorRegistry()) as port:
        dripping = socket.create_connection((HOST, port), timeout=PATIENCE_S)
        dripping.sendall(b"GET /metrics HTTP/1.1\r\nHost:")
    try:
        assert dripping.recv(1) == b""
    except ConnectionResetError:
        pass
    finally:
        dripping.close()


def test_where_no_thread_can_be_started_for_a_while_a_collector_is_served_after_it(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: threading.Timer) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as lacking:
        lacking.setattr(threading.Timer, "start", fails)
        for _ in range(2 * app.node.metrics_server._CONNECTIONS_MAX):
            with socket.create_connection((HOST, port), timeout=PATIENCE_S) as turned_away:
                assert turned_away.recv(1) == b""
    assert "utrn_test" in _page(port), "each gave its place back"
