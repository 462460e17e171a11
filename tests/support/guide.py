"""The integration guide's programs, in a folder of their own, and a node in this process that they can be sent to."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from utrn.v1 import credit_service_pb2_grpc as credit_rpc
from utrn.v1 import top_up_service_pb2_grpc as rpc

from app.devstack.stack import DevStack
from tests.support.patience import PATIENCE_S

ROOT = Path(__file__).parents[2]
TOOLS = Path(sys.executable).parent
INSTALL = "(cd docs/integration && npm ci --ignore-scripts --no-audit --no-fund)"


def make_guide(folder: Path, install: str = INSTALL) -> Path:
    """A folder in which the guide's commands run: the guide, what it needs, and nothing else of this repository."""
    leave = shutil.ignore_patterns("node_modules", "__pycache__")
    shutil.copytree(ROOT / "docs" / "integration", folder / "docs" / "integration", ignore=leave)
    shutil.copytree(ROOT / "proto", folder / "proto", ignore=leave)
    (folder / ".venv").symlink_to(sys.prefix)
    subprocess.run(["sh", "-c", install], cwd=folder, env=environment(), check=True, capture_output=True)
    return folder


def environment(**values: str) -> dict[str, str]:
    return {**os.environ, "PATH": f"{TOOLS}:{os.environ['PATH']}", **values}


def options(stack: DevStack, who: str, target: str = "") -> str:
    """Return what stands for a participant in a command; its certificate may come to be only later."""
    folder = stack.folder / "pki"
    files = f"--cert {folder / who}.pem --key {folder / who}.key --ca {folder / 'nodes-ca.pem'}"
    return f"--target {target or stack.node_target('node-a')} {files}"


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


PROGRAMS = {
    "python": (".venv/bin/python", "docs/integration/sell.py"),
    "node": (str(TOOLS / "node"), "docs/integration/sell.mjs"),
}


async def started(program: str, guide: Path, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *PROGRAMS[program],
        *arguments,
        cwd=guide,
        env=environment(),
        stdout=asyncio.subprocess.PIPE,
        # The node of this environment is a program that starts another: both must end when they are killed.
        start_new_session=True,
    )


async def ended(program: str, guide: Path, *arguments: str) -> tuple[int | None, list[dict[str, Any]]]:
    """Run a program to its end; return its exit code and what it said."""
    running = await started(program, guide, *arguments)
    async with asyncio.timeout(PATIENCE_S):
        said, _ = await running.communicate()
    return running.returncode, objects(said.decode())


@asynccontextmanager
async def serving(
    stack: DevStack, servicer: rpc.TopUpServiceServicer, credit: credit_rpc.CreditServiceServicer | None = None
) -> AsyncIterator[str]:
    """Serve in this process, as a node does: mutual TLS, and health."""
    certs = stack.pki.node("guide-node")
    credentials = grpc.ssl_server_credentials(
        [(certs.key.read_bytes(), certs.cert.read_bytes())],
        stack.pki.callers.ca_file.read_bytes(),
        require_client_auth=True,
    )
    server = grpc.aio.server()
    rpc.add_TopUpServiceServicer_to_server(servicer, server)
    if credit is not None:
        credit_rpc.add_CreditServiceServicer_to_server(credit, server)
    healthy = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    await healthy.set("utrn.v1.TopUpService", health_pb2.HealthCheckResponse.SERVING)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield f"localhost:{port}"
    finally:
        await server.stop(30.0)
