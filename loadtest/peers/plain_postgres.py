"""IssueUtrn written plainly on PostgreSQL: grpc.aio, asyncpg, one transaction per vend, one server, no replica.

What somebody would write in a week: the same request, the same TLS, the same checks in SQL, a counter per meter, a vend
that is there answered again. The code is an HMAC and no GBCS token: whatever the real one costs is a gift to this peer.
`python -m loadtest.peers.plain_postgres --dsn DSN --cert C --key K --ca CA --pans FILE` prints its port.
"""

import argparse
import asyncio
import hashlib
import hmac
import sys
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import uvloop
from utrn.v1 import top_up_service_pb2 as pb
from utrn.v1 import top_up_service_pb2_grpc as rpc

CONNECTIONS = 32
_KEY = b"a key that no HSM holds"
_SCHEMA = """
CREATE TABLE participants (uri text PRIMARY KEY, participant_id text NOT NULL, active boolean NOT NULL);
CREATE TABLE meters (meter_id text PRIMARY KEY, supplier_id text NOT NULL, prepayment boolean NOT NULL,
    max_credit int NOT NULL, last_counter bigint NOT NULL DEFAULT 0);
CREATE TABLE pans (pan text PRIMARY KEY, meter_id text NOT NULL REFERENCES meters, blocked boolean NOT NULL);
CREATE TABLE appointments (supplier_id text, psp_id text, most_pence int NOT NULL, PRIMARY KEY (supplier_id, psp_id));
CREATE TABLE vends (participant_id text, transaction_id text, pan text NOT NULL, meter_id text NOT NULL,
    amount_pence bigint NOT NULL, channel int NOT NULL, counter bigint NOT NULL, utrn text NOT NULL,
    issued_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (participant_id, transaction_id), UNIQUE (meter_id, counter));
"""
_MAY = """
SELECT m.meter_id, m.supplier_id FROM pans p JOIN meters m USING (meter_id)
    JOIN appointments a ON a.supplier_id = m.supplier_id AND a.psp_id = $2
    WHERE p.pan = $1 AND NOT p.blocked AND m.prepayment AND $3 <= a.most_pence AND $3 <= m.max_credit
"""
_NEXT = "UPDATE meters SET last_counter = last_counter + 1 WHERE meter_id = $1 RETURNING last_counter"
_THERE = "SELECT pan, amount_pence, utrn FROM vends WHERE participant_id = $1 AND transaction_id = $2"
_PUT = """
INSERT INTO vends (participant_id, transaction_id, pan, meter_id, amount_pence, channel, counter, utrn)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
"""


class PlainService(rpc.TopUpServiceServicer):  # of its methods one is written
    """Issues codes, each in one transaction."""

    def __init__(self, pool: Any) -> None:
        """Take the connections."""
        self._pool = pool

    async def IssueUtrn(self, request: pb.IssueUtrnRequest, context: Any) -> pb.IssueUtrnResponse:  # noqa: N802
        """Issue one code, or answer the one that is there."""
        async with self._pool.acquire() as connection, connection.transaction():
            uri = next(iter(context.auth_context().get("x509_subject_alternative_name", ())), b"").decode()
            caller = await connection.fetchrow("SELECT participant_id, active FROM participants WHERE uri = $1", uri)
            if caller is None or not caller["active"]:
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, "unknown caller")
            participant_id = caller["participant_id"]
            there = await connection.fetchrow(_THERE, participant_id, request.transaction_id)
            if there is not None:
                if (there["pan"], there["amount_pence"]) != (request.pan, request.amount_pence):
                    await context.abort(grpc.StatusCode.ALREADY_EXISTS, "this transaction_id has other content")
                return _answer(request, there["utrn"])
            may = await connection.fetchrow(_MAY, request.pan, participant_id, request.amount_pence)
            if may is None:
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, "not appointed, or not for so much")
            counter = await connection.fetchval(_NEXT, may["meter_id"])
            utrn = _code(may["meter_id"], counter, request.amount_pence)
            await connection.execute(
                _PUT, participant_id, request.transaction_id, request.pan, may["meter_id"], request.amount_pence,
                request.channel, counter, utrn,
            )  # fmt: skip
        return _answer(request, utrn)


def _answer(request: pb.IssueUtrnRequest, utrn: str) -> pb.IssueUtrnResponse:
    response = pb.IssueUtrnResponse()
    response.code.transaction_id = request.transaction_id
    response.code.utrn = utrn
    response.code.amount_pence = request.amount_pence
    return response


def _code(meter_id: str, counter: int, pence: int) -> str:
    digest = hmac.digest(_KEY, f"{meter_id}/{counter}/{pence}".encode(), hashlib.sha256)
    return f"{int.from_bytes(digest[:8]):020d}"


async def prepare(connection: Any, callers: dict[str, str], pans: list[str]) -> None:
    """Make the tables, callers by SAN URI, and a meter for each PAN."""
    await connection.execute(_SCHEMA)
    rows = [(uri, name, True) for uri, name in callers.items()]
    await connection.copy_records_to_table("participants", records=rows)
    meters = [(f"meter-{pan}", "supplier-north", True, 819_100, 0) for pan in pans]
    await connection.copy_records_to_table("meters", records=meters)
    await connection.copy_records_to_table("pans", records=[(pan, f"meter-{pan}", False) for pan in pans])
    most = [("supplier-north", name, 819_100) for name in callers.values()]
    await connection.copy_records_to_table("appointments", records=most)


async def _serve(arguments: argparse.Namespace, pans: list[str]) -> None:
    async with asyncpg.create_pool(arguments.dsn, min_size=CONNECTIONS, max_size=CONNECTIONS) as pool:
        async with pool.acquire() as connection:
            uri, _, name = arguments.caller.partition("=")
            await prepare(connection, {uri: name}, pans)
        server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        rpc.add_TopUpServiceServicer_to_server(PlainService(pool), server)  # type: ignore[abstract]
        pair = [(arguments.key.read_bytes(), arguments.cert.read_bytes())]
        credentials = grpc.ssl_server_credentials(pair, arguments.ca.read_bytes(), require_client_auth=True)
        port = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        sys.stdout.write(f"{port}\n")
        sys.stdout.flush()
        await server.wait_for_termination()


def main() -> None:
    """Serve until ended."""
    parser = argparse.ArgumentParser()
    for name in ("--dsn", "--caller"):
        parser.add_argument(name, required=True)
    for name in ("--cert", "--key", "--ca", "--pans"):
        parser.add_argument(name, type=Path, required=True)
    arguments = parser.parse_args()
    pans = arguments.pans.read_text(encoding="ascii").split()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(arguments, pans))


if __name__ == "__main__":
    main()
