"""The options of every channel and server: given everywhere, and alike with whoever may not import them."""

import ast
from pathlib import Path

import pytest
from pydantic import TypeAdapter
from utrn_client import channel as kit

from core.api.config import ApiConfig
from core.net.channels import Remote, channel_options, server_options
from loadtest.client import Target
from sandbox import servers as sandbox

ROOT = Path(__file__).parents[4]
OURS = ("core", "cluster", "app", "client", "sandbox", "loadtest", "hsm", "docs")
OPENS = {"secure_channel", "insecure_channel", "server"}
# What decides whether a dead connection is noticed, by whom, and whether a proxy carries it: alike in every channel.
CARE = (
    "grpc.keepalive_time_ms", "grpc.keepalive_timeout_ms", "grpc.http2.max_pings_without_data",
    "grpc.initial_reconnect_backoff_ms", "grpc.enable_http_proxy",
)  # fmt: skip
API = ApiConfig(listen="127.0.0.1:0", cert=Path("c"), key=Path("k"), client_ca=Path("a"))


def _opened(file: Path) -> list[ast.Call]:
    """Calls of grpc.secure_channel, grpc.aio.server and their like."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in OPENS:
            owner = ast.unparse(node.func.value)
            if owner in ("grpc", "grpc.aio"):
                found.append(node)
    return found


def test_no_channel_and_no_server_is_opened_without_options() -> None:
    calls = [(file, call) for name in OURS for file in (ROOT / name).rglob("*.py") for call in _opened(file)]
    assert len(calls) >= 8, "the search finds none: it is broken"
    bare = [
        f"{file.relative_to(ROOT)}:{call.lineno}"
        for file, call in calls
        if not any(keyword.arg == "options" for keyword in call.keywords)
    ]
    assert bare == []


@pytest.mark.parametrize("remote", Remote)
def test_every_channel_of_a_node_notices_a_dead_connection(remote: Remote) -> None:
    options = dict(channel_options(remote, server_name="x"))
    assert 5_000 < int(options["grpc.keepalive_time_ms"]) <= 10_000
    assert int(options["grpc.keepalive_timeout_ms"]) <= 5_000
    assert options["grpc.enable_http_proxy"] == 0
    assert options["grpc.use_local_subchannel_pool"] == 1
    assert options["grpc.ssl_target_name_override"] == "x"
    # Servers that were told nothing end a connection for pings without calls: etcd, a head end, a node of before.
    assert options["grpc.keepalive_permit_without_calls"] == 0
    assert "grpc.ssl_target_name_override" not in dict(channel_options(remote))


def test_who_may_not_import_the_options_has_the_same() -> None:
    ours = {key: dict(channel_options(Remote.HEAD_END))[key] for key in CARE}
    strangers = {
        "the kit": dict(kit.options("x")),
        "the load test": dict(Target(nodes=(), cert=Path(), key=Path(), ca=Path()).options()),
        "the sandbox": dict(sandbox.CHANNEL_OPTIONS),
    }
    assert {name: {key: of.get(key) for key in CARE} for name, of in strangers.items()} == dict.fromkeys(
        strangers, ours
    )
    for key, value in sandbox.SERVER_OPTIONS:
        assert dict(server_options(API.connections))[key] == value


def test_the_guide_s_till_in_node_has_them_too() -> None:
    text = (ROOT / "docs" / "integration" / "sell.mjs").read_text()
    # grpc-js knows neither a limit of pings without data nor the user time-out.
    for key in set(CARE) - {"grpc.http2.max_pings_without_data"}:
        assert f"'{key}': {dict(kit.options('x'))[key]}," in text


def test_a_proxy_is_used_by_a_till_that_asks_for_it_only() -> None:
    assert dict(kit.options("x", through_proxy=True))["grpc.enable_http_proxy"] == 1


def test_a_server_lets_pings_pass_that_its_own_callers_send() -> None:
    server, till = dict(server_options(API.connections)), dict(kit.options("x"))
    assert server["grpc.keepalive_permit_without_calls"] == 1
    assert 2 * int(server["grpc.http2.min_ping_interval_without_data_ms"]) <= till["grpc.keepalive_time_ms"]
    assert server["grpc.max_connection_age_grace_ms"] == 300_000


@pytest.mark.parametrize(
    "change",
    [{"handshake_s": 0}, {"connection_idle_s": 1}, {"connection_age_s": 1}, {"connection_age_grace_s": 0},
     {"ping_min_s": 0}, {"listen": "::1:7443"}],
)  # fmt: skip
def test_limits_out_of_range_are_refused(change: dict[str, object]) -> None:
    given = {"listen": "127.0.0.1:0", "cert": Path("c"), "key": Path("k"), "client_ca": Path("a"), **change}
    with pytest.raises(ValueError, match=next(iter(change))):
        TypeAdapter(ApiConfig).validate_python(given)
