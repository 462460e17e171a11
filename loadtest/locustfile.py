"""Entry for Locust: `locust -f loadtest/locustfile.py --headless --shape peak ...`; `make load` does all of it."""

# gRPC and gevent get along only if this comes before anything else of gRPC's.
import grpc.experimental.gevent as grpc_gevent

grpc_gevent.init_gevent()

from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import grpc  # noqa: E402
from locust import LoadTestShape, events  # noqa: E402

from loadtest import users  # noqa: E402
from loadtest.client import Target  # noqa: E402
from loadtest.journal import Journal  # noqa: E402
from loadtest.shapes import SHAPES  # noqa: E402

_CHANNELS = 8


class World:
    """What users share: channels, PANs, the journal."""

    def __init__(self, target: Target, pans: list[str], journal: Journal) -> None:
        self._channels = [target.channel() for _ in range(_CHANNELS)]
        self._next = 0
        self.pans = pans
        self.journal = journal

    def channel(self) -> grpc.Channel:
        """Return one of a few channels in turn."""
        self._next += 1
        return self._channels[self._next % _CHANNELS]


@events.init_command_line_parser.add_listener
def _options(parser: Any) -> None:
    parser.add_argument("--shape", choices=sorted(SHAPES), default="steady", help="How load comes.")
    parser.add_argument("--seconds", type=int, default=0, help="How long; 0: as the shape says.")
    parser.add_argument("--nodes", required=True, help="address:port of every node, comma between them.")
    parser.add_argument("--cert-file", type=Path, required=True, help="PEM file of the caller's certificate.")
    parser.add_argument("--key-file", type=Path, required=True, help="PEM file of its private key.")
    parser.add_argument("--ca-file", type=Path, required=True, help="PEM file of the nodes' authority.")
    parser.add_argument("--pans", type=Path, required=True, help="File with one PAN a line.")
    parser.add_argument("--journal", type=Path, required=True, help="Where every call is written down.")


@events.init.add_listener
def _init(environment: Any, **_: Any) -> None:
    options = environment.parsed_options
    target = Target(tuple(options.nodes.split(",")), options.cert_file, options.key_file, options.ca_file)
    environment.world = World(target, options.pans.read_text().split(), Journal(options.journal))
    kinds = SHAPES[options.shape].kinds
    environment.user_classes = [getattr(users, name) for name in kinds]


@events.quitting.add_listener
def _quit(environment: Any, **_: Any) -> None:
    environment.world.journal.close()
    # Pass or fail is said by who started this, with slo.toml and the audit; Locust's own code is for its own failures.
    environment.process_exit_code = 0


class Course(LoadTestShape):
    """Follows the chosen shape."""

    def tick(self) -> tuple[int, float] | None:
        """Return how many users there should be now, and how many may come in a second; None at the end."""
        options = self.runner.environment.parsed_options
        shape = SHAPES[options.shape]
        seconds = options.seconds or shape.seconds
        share = self.get_run_time() / seconds
        return None if share >= 1.0 else (max(1, shape.users_at(share)), 50.0)


Till, App, StatusPoller, Impatient = users.Till, users.App, users.StatusPoller, users.Impatient
