"""A real etcd for tests, on loopback, in a folder of its own; and the choice between it and the fake."""

import itertools
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import grpc
import pytest
from etcdpb import rpc_pb2 as pb
from etcdpb import rpc_pb2_grpc as rpc

from app.devstack.ports import free_ports
from cluster.config import EtcdConfig
from cluster.etcd.client import EtcdClient
from core.net.channels import Remote, channel_options
from tests.fakes.etcd import FakeEtcd

_WAIT_S = 20.0
_prefixes = itertools.count()


class RealEtcd:
    """One or three members, plain text, without fsync: durability is not what these tests are about."""

    def __init__(self, folder: Path, members: int = 1, options: tuple[str, ...] = ()) -> None:
        ports = free_ports(2 * members)
        self.folder, self.options = folder, options
        self.clients, self.peers = ports[:members], ports[members:]
        self.processes: list[subprocess.Popen[bytes]] = []
        for index in range(members):
            self.processes.append(self._start(index))
        for port in self.clients:
            wait_for_port(port)
        with grpc.insecure_channel(self.endpoints[0], options=channel_options(Remote.ETCD)) as channel:
            # Linearizable: answered only once there is a leader.
            rpc.KVStub(channel).Range(pb.RangeRequest(key=b"any"), timeout=_WAIT_S, wait_for_ready=True)

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(f"127.0.0.1:{port}" for port in self.clients)

    def config(self, **changes: object) -> EtcdConfig:
        """A configuration with a prefix that nobody else uses."""
        settings: dict[str, object] = {"endpoints": self.endpoints, "prefix": f"t{next(_prefixes)}/", **changes}
        return EtcdConfig(**settings)  # type: ignore[arg-type]

    def restart(self, index: int) -> None:
        self.processes[index] = self._start(index)
        wait_for_port(self.clients[index])

    def stop(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()

    def _start(self, index: int) -> subprocess.Popen[bytes]:
        binary = shutil.which("etcd")
        assert binary is not None, "run `make setup`"
        client, peer = f"http://127.0.0.1:{self.clients[index]}", f"http://127.0.0.1:{self.peers[index]}"
        cluster = ",".join(f"m{at}=http://127.0.0.1:{port}" for at, port in enumerate(self.peers))
        log = (self.folder / f"m{index}.log").open("ab")
        with log:
            return subprocess.Popen(
                [binary, "--name", f"m{index}", "--data-dir", str(self.folder / f"m{index}"),
                 "--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer,
                 "--initial-advertise-peer-urls", peer, "--initial-cluster", cluster, "--unsafe-no-fsync",
                 "--log-level", "error", *self.options],
                stdout=log, stderr=log,
            )  # fmt: skip


def wait_for_port(port: int) -> None:
    until = time.monotonic() + _WAIT_S
    while time.monotonic() < until:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1.0):
                return
        except OSError:
            time.sleep(0.02)
    raise AssertionError(f"nothing listens on {port}")


@dataclass(frozen=True)
class Store:
    """An etcd, fake or real, as the adapters see it."""

    client: EtcdClient
    config: EtcdConfig


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealEtcd]:
    """One real member for the whole run."""
    real = RealEtcd(tmp_path_factory.mktemp("etcd"))
    yield real
    real.stop()


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.real)])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """The fake, then the real one: what holds for one must hold for the other."""
    if request.param == "fake":
        yield Store(cast("EtcdClient", FakeEtcd()), EtcdConfig(endpoints=("fake:1",)))
        return
    config = request.getfixturevalue("etcd").config()
    client = EtcdClient(config)
    yield Store(client, config)
    await client.close()
