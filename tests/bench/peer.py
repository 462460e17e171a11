"""The peer that `make bench` compares with: loadtest.peers.plain_postgres, on PostgreSQL with its defaults."""

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.devstack.files import PSP
from app.devstack.ports import free_ports
from app.devstack.stack import DevStack
from tests.support.selling import pans

_START_S = 60


def _binaries() -> Path:
    """Return where PostgreSQL's programs are; install them if they are not there and this is root.

    Raises:
        RuntimeError: they are not there and cannot be installed.
    """
    if not (found := _found()):
        if os.geteuid() != 0:
            raise RuntimeError("the bench compares with PostgreSQL: install the package `postgresql`, or run as root")
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "postgresql"]
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
        subprocess.run(["apt-get", "update", "-qq"], check=True, env=environment)
        subprocess.run(install, check=True, env=environment, stdout=sys.stderr)
        found = _found()
    return found[-1]


def _found() -> list[Path]:
    return sorted(file.parent for file in Path("/usr/lib/postgresql").glob("*/bin/initdb"))


@contextmanager
def _postgres(folder: Path) -> Iterator[str]:
    """Run PostgreSQL with its defaults, its data in `folder`, for as long as the context lasts; yield its DSN.

    It does not run as root, so then the account of its package is used.
    """
    programs, (port,) = _binaries(), free_ports(1)
    user = "postgres" if os.geteuid() == 0 else None
    if user is not None:
        account = pwd.getpwnam(user)
        os.chown(folder, account.pw_uid, account.pw_gid)
    data = folder / "data"

    def run(program: str, *arguments: str) -> None:
        command = [str(programs / program), *arguments]
        subprocess.run(
            command, check=True, cwd=folder, user=user, group=user, stdout=subprocess.DEVNULL, timeout=_START_S
        )

    run("initdb", "--pgdata", str(data), "--username", "bench", "--auth", "trust", "--no-instructions")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    run("pg_ctl", "--pgdata", str(data), "--wait", "--log", str(folder / "postgres.log"), "-o", options, "start")
    try:
        yield f"postgresql://bench@127.0.0.1:{port}/postgres"
    finally:
        run("pg_ctl", "--pgdata", str(data), "--wait", "--mode", "immediate", "stop")


@contextmanager
def plain_peer(stack: DevStack) -> Iterator[str]:
    """Run the peer beside a stack, with its node's certificate and its PANs; yield host:port."""
    folder = Path(tempfile.mkdtemp(prefix="utrn-peer-"))
    try:
        with _postgres(folder) as dsn:
            (folder / "pans").write_text("\n".join(pans(stack)), encoding="ascii")
            node = stack.pki.node("node-a")
            command = [
                sys.executable, "-m", "loadtest.peers.plain_postgres", "--dsn", dsn,
                "--caller", f"spiffe://utrn/participant/{PSP}={PSP}", "--pans", str(folder / "pans"),
                "--cert", str(node.cert), "--key", str(node.key), "--ca", str(stack.pki.callers.ca_file),
            ]  # fmt: skip
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                try:
                    assert process.stdout is not None
                    port = process.stdout.readline().strip()
                    if not port:
                        raise RuntimeError("the peer did not start")
                    yield f"127.0.0.1:{port}"
                finally:
                    process.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
