"""The options of every gRPC channel and server of a node: how a dead connection is noticed, and who may ping whom.

A connection whose packets vanish without a reset looks alive to both ends. Two things end it here. TCP's user time-out:
gRPC sets it to `grpc.keepalive_timeout_ms` wherever keepalive is on, so that what is sent and not acknowledged for so
long ends the connection. And pings, where nothing is being sent. The client kit (client/utrn_client/channel.py), the
load test and the sandbox are strangers: their own options are held equal to these by a test. docs/decisions/0035.
"""

from dataclasses import dataclass
from enum import Enum

SellingModel = tuple[str, str | int]
Options = tuple[SellingModel, ...]

# No proxy of the environment: `https_proxy` in a shell or a unit file would otherwise carry away what goes to etcd, to
# peers and to head ends, on loopback too, without a word.
NO_PROXY: SellingModel = ("grpc.enable_http_proxy", 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Care:
    """How a kind of remote is dialled and watched.

    Attributes:
        idle_ping_ms: Milliseconds in which nothing was received, after which it is pinged.
        dead_after_ms: Milliseconds that a ping, or anything else that was sent, may stay unacknowledged.
        connect_ms: Milliseconds that one attempt to connect may take, TCP and TLS together.
        pause_most_ms: Milliseconds at most between two attempts.
    """

    idle_ping_ms: int = 10_000
    dead_after_ms: int = 5_000
    connect_ms: int = 1_000
    pause_most_ms: int = 1_000


class Remote(Enum):
    """The remote end of a node's channel."""

    # etcd ends connections that ping more often than every 5 s (--grpc-keepalive-min-time), or without calls.
    ETCD = _Care(dead_after_ms=3_000, connect_ms=500)
    # Beats come several times a second, and their absence is judged by cluster/membership/failure_detector.py; this
    # ends what is left behind.
    PEER = _Care(dead_after_ms=3_000)
    # Signs of life on the event stream come more often than a ping would be sent, so a head end whose server knows
    # nothing of pings never sees one while its stream works.
    HEAD_END = _Care(connect_ms=2_000, pause_most_ms=2_000)


def channel_options(remote: Remote, *, server_name: str = "") -> Options:
    """Return the options of a channel to `remote`.

    Args:
        remote: What it is.
        server_name: Name in its certificate; empty if that is the target's host.
    """
    care = remote.value
    options: Options = (
        ("grpc.keepalive_time_ms", care.idle_ping_ms),
        ("grpc.keepalive_timeout_ms", care.dead_after_ms),
        # A server that does not expect pings without calls ends the connection with "too many pings": gRPC's servers
        # are so by default, and so is etcd. A node has a stream open to whatever it must hear.
        ("grpc.keepalive_permit_without_calls", 0),
        # Otherwise gRPC stops pinging after two pings without data, just where pings are what is needed.
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        # Also how long one attempt to connect may take: a handshake takes a moment over a WAN, or on a busy host.
        ("grpc.min_reconnect_backoff_ms", care.connect_ms),
        ("grpc.max_reconnect_backoff_ms", care.pause_most_ms),
        # Each channel its own connection: otherwise a new channel to the same place would get the old dead one.
        ("grpc.use_local_subchannel_pool", 1),
        NO_PROXY,
    )
    return (*options, ("grpc.ssl_target_name_override", server_name)) if server_name else options


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """Limits that a server sets for each connection.

    Attributes:
        handshake_s: Seconds for TLS.
        idle_s: Seconds without a call after which a connection is ended in good order.
        age_s: Seconds after which every connection is ended in good order.
        age_grace_s: Seconds that the calls on it may then still take.
        ping_min_s: Seconds between pings, below which a caller is thrown out after a few.
    """

    handshake_s: float
    idle_s: float
    age_s: float
    age_grace_s: float
    ping_min_s: float


def server_options(limits: ServerLimits) -> Options:
    """Return the options of a server that concern its connections, not its calls."""
    return (
        # A caller or peer whose packets vanish holds its connection open for ever: ask it now and then.
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.http2.max_pings_without_data", 0),
        # Callers may ping as load balancers and this service's own kit do: with calls under way, and without.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _ms(limits.ping_min_s)),
        ("grpc.server_handshake_timeout_ms", _ms(limits.handshake_s)),
        ("grpc.max_connection_idle_ms", _ms(limits.idle_s)),
        ("grpc.max_connection_age_ms", _ms(limits.age_s)),
        ("grpc.max_connection_age_grace_ms", _ms(limits.age_grace_s)),
        # Two servers on one port would each get half of the calls and none of the blame.
        ("grpc.so_reuseport", 0),
        # A caller's window stays at 64 KiB until somebody waits for its message: gRPC would widen it to megabytes, and
        # keep as much of each call that nobody reads yet.
        ("grpc.http2.bdp_probe", 0),
    )


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
