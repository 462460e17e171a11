"""Tokens of SoftHSM with the keys of the test vectors, signers over them, and what befalls either."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from app.verification.conformance import scratch_token
from core.domain.meter import MeterId
from core.domain.participant import SupplierKey
from core.domain.utrn import Counter
from core.domain.utrn_value import CodeValue, ValueClass
from core.gateways.system_clock import SystemClock
from core.ports.signer import SignRequest
from hsm.ceremony import store_scalar
from hsm.config import HsmConfig
from hsm.signer import HsmSigner
from tests.support.patience import PATIENCE_S

_PROGRAM = """
import sys, pkcs11
lib, label, pin, key = sys.argv[1:]
token = pkcs11.lib(lib).get_token(token_label=label)
with token.open(user_pin=open(pin).read().strip(), rw=True) as session:
    for one in list(session.get_objects({pkcs11.Attribute.ID: bytes.fromhex(key)})):
        one.destroy()
"""


CONTENT: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "gbcs.json").read_text())
SCALARS = {eui: int(key["prepayment_private_scalar_hex"], 16) for eui, key in CONTENT["originators"].items()}


def request_of(vector: dict[str, Any]) -> SignRequest:
    originator = CONTENT["originators"][vector["originator_id"]]
    return SignRequest(
        scheme="gbcs",
        key=SupplierKey(
            originator_id=vector["originator_id"],
            key_id=vector["originator_id"],
            public_point=bytes.fromhex(originator["prepayment_public_point_hex"]),
        ),
        meter_id=MeterId(vector["device_id"]),
        meter_point=bytes.fromhex(CONTENT["devices"][vector["device_id"]]["public_point_hex"]),
        counter=Counter(vector["utrn_counter"]),
        value=CodeValue(ValueClass[vector["unit"].upper()], vector["value"]),
    )


REQUESTS = [request_of(vector) for vector in CONTENT["vectors"]]


def make_token(folder: Path, scalars: dict[str, int] = SCALARS, **changes: Any) -> HsmConfig:
    folder.mkdir()
    config = scratch_token(folder)
    for key_id, scalar in scalars.items():
        store_scalar(config, scalar, key_id=key_id, label=key_id, now=SystemClock().now())
    return replace(config, restart_first_ms=20, restart_most_ms=200, **changes)


@asynccontextmanager
async def running(config: HsmConfig) -> AsyncIterator[HsmSigner]:
    signer = HsmSigner(config)
    await signer.start()
    keeping = asyncio.get_running_loop().create_task(signer.run())
    try:
        yield signer
    finally:
        keeping.cancel()
        await signer.close()


async def until_ready(signer: HsmSigner, ready: bool = True) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while signer.ready is not ready:  # noqa: ASYNC110  # a port without an event for this
            await asyncio.sleep(0.01)


def children(pid: int | None = None) -> list[int]:
    """Return the processes that a process has started and that have not been waited for, oldest first."""
    of = pid or os.getpid()
    return [int(one) for one in Path(f"/proc/{of}/task/{of}/children").read_text().split()]


def destroy_key(config: HsmConfig, key_id: str) -> None:
    """Destroy everything that a token has under a key id."""
    environment = {**os.environ, "SOFTHSM2_CONF": str(config.softhsm_conf)}
    arguments = [str(config.module), config.token_label, str(config.pin_file), key_id]
    subprocess.run([sys.executable, "-c", _PROGRAM, *arguments], check=True, env=environment)
