"""Certificates and revocation lists that change while a node runs: it takes what can be used, without a restart."""

import asyncio
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from utrn.v1 import participant_service_pb2 as participant_pb
from utrn.v1 import top_up_service_pb2 as pb

from app.devstack.ca import CertPaths, participant_uri
from app.devstack.files import OPERATOR, PSP, StackPlan
from app.devstack.stack import DevStack
from core.gateways.system_clock import SystemClock
from core.net.address import parse_address
from tests.support.crooked import Issuer, Made, crl_of, made
from tests.support.patience import PATIENCE_S
from tests.support.raw import raw_call, raw_channel
from tests.support.selling import new_id

pytestmark = [pytest.mark.real]
LIST = "/utrn.v1.ParticipantService/ListParticipants"
OWN = "/utrn.v1.ParticipantService/GetParticipant"
REVOKE = "/utrn.v1.ParticipantService/RevokeCertificates"
_LOOK_AGAIN_S = 0.1


class WithList(DevStack):
    """A stack whose node has a revocation list, and a certificate for etcd that ends soon."""

    @property
    def crl(self) -> Path:
        """The list of the callers' authority."""
        return self.folder / "callers.crl"

    def write_node_config(self, node: str) -> Path:
        """Name the list in it."""
        self.crl.write_bytes(crl_of(Issuer.of(self.pki.callers)))
        path = super().write_node_config(node)
        path.write_text(path.read_text().replace("client_ca =", f'client_crl = "{self.crl}"\nclient_ca ='))
        return path


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WithList]:
    one = WithList(tmp_path_factory.mktemp("renewed"), StackPlan(nodes=("node-a",), meters=4, etcd_fsync=False))
    try:
        one.start_all()
        yield one
    finally:
        one.stop_all()


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Return when it holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not await holds():  # noqa: ASYNC110  # a process is asked
            await asyncio.sleep(_LOOK_AGAIN_S)


def put(path: Path, content: bytes) -> None:
    """Replace a file by renaming, as whoever distributes certificates should."""
    new = path.with_suffix(".new")
    new.write_bytes(content)
    new.chmod(0o600)
    os.replace(new, path)


async def test_what_is_revoked_is_refused_on_a_connection_that_stands_and_others_are_not(stack: WithList) -> None:
    issuer = Issuer.of(stack.pki.callers)
    stolen = made(issuer, participant_uri(OPERATOR))
    certs = stolen.write(stack.folder / "pki", "stolen", stack.pki.nodes.ca_file)
    async with raw_channel(stack, certs=certs) as theirs, raw_channel(stack, OPERATOR) as ours:
        assert (await raw_call(theirs, LIST, b"")).code is grpc.StatusCode.OK
        put(stack.crl, crl_of(issuer, stolen.certificate.serial_number))

        async def refused() -> bool:
            return (await raw_call(theirs, LIST, b"")).reason == "CERTIFICATE_REFUSED"

        await until(refused)
        assert (await raw_call(ours, LIST, b"")).code is grpc.StatusCode.OK
        # What cannot be used is not taken, and revokes nothing less.
        put(stack.crl, b"no list")
        await until(lambda: _logged(stack, "tls files cannot be used"))
        assert await refused()
        assert (await raw_call(ours, LIST, b"")).code is grpc.StatusCode.OK
    put(stack.crl, crl_of(issuer))


async def test_what_an_operator_revokes_is_refused_at_once_and_a_new_one_of_the_same_name_is_not(
    stack: WithList,
) -> None:
    issuer, uri = Issuer.of(stack.pki.callers), participant_uri(PSP)
    stolen, fresh = made(issuer, uri), made(issuer, uri)
    folder, ca = stack.folder / "pki", stack.pki.nodes.ca_file
    theirs = stolen.write(folder, "psp-stolen", ca)
    async with raw_channel(stack, certs=theirs) as channel, raw_channel(stack, OPERATOR) as operator:
        assert (await raw_call(channel, OWN, b"")).code is grpc.StatusCode.OK
        request = participant_pb.RevokeCertificatesRequest(
            participant_id=PSP, fingerprints=[stolen.certificate.fingerprint(hashes.SHA256()).hex()]
        )
        assert (await raw_call(operator, REVOKE, request.SerializeToString())).code is grpc.StatusCode.OK

        async def refused() -> bool:
            return (await raw_call(channel, OWN, b"")).reason == "CERTIFICATE_REFUSED"

        await until(refused)
    async with raw_channel(stack, certs=fresh.write(folder, "psp-fresh", ca)) as channel:
        assert (await raw_call(channel, OWN, b"")).code is grpc.StatusCode.OK


async def test_a_new_certificate_of_a_node_is_shown_to_who_comes_next(stack: WithList) -> None:
    before = await asyncio.to_thread(_shown, stack)
    async with raw_channel(stack, OPERATOR) as standing:
        assert (await raw_call(standing, LIST, b"")).code is grpc.StatusCode.OK
        stack.pki.node("node-a", renew=True)

        async def new() -> bool:
            return await asyncio.to_thread(_shown, stack) != before

        await until(new)
        assert (await raw_call(standing, LIST, b"")).code is grpc.StatusCode.OK


async def test_a_node_whose_certificate_for_etcd_ended_works_again_with_a_new_one(stack: WithList) -> None:
    """Ended, it cannot come back to an etcd that was restarted; no file but the certificate's is touched then."""
    certs = stack.pki.etcd_client("node-a")
    ends = SystemClock().now() + timedelta(seconds=4)
    _write(made(Issuer.of(stack.pki.etcd), ends=ends), certs)
    await until(lambda: _logged(stack, "certificate must be renewed"))

    async def ended() -> bool:
        return SystemClock().now() > ends + timedelta(seconds=1)

    await until(ended)
    stack.kill("etcd-0")
    stack.start_etcd_member(0)
    await until(lambda: _not(_reads_ledger(stack)))
    _write(made(Issuer.of(stack.pki.etcd)), certs)
    await until(lambda: _reads_ledger(stack))


async def _reads_ledger(stack: WithList) -> bool:
    """Return whether the node can look up an id that nobody has used."""
    body = pb.GetVendRequest(transaction_id=str(new_id())).SerializeToString()
    async with raw_channel(stack, OPERATOR) as channel:
        return (await raw_call(channel, "/utrn.v1.TopUpService/GetVend", body)).reason == "VEND_UNKNOWN"


async def _not(one: Awaitable[bool]) -> bool:
    return not await one


async def _logged(stack: WithList, what: str) -> bool:
    return what in stack.log_file("node-a").read_text()


def _shown(stack: WithList) -> int:
    """Return the serial number of the certificate that a node shows."""
    certs, at = stack.certs(OPERATOR), parse_address(stack.node_target("node-a"))
    context = ssl.create_default_context(cafile=str(certs.ca))
    context.load_cert_chain(certs.cert, certs.key)
    with (
        socket.create_connection((at.host, at.port), timeout=10.0) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        return x509.load_der_x509_certificate(secure.getpeercert(binary_form=True) or b"").serial_number


def _write(one: Made, certs: CertPaths) -> None:
    folder = certs.cert.parent
    fresh = one.write(folder, "fresh", certs.ca)
    put(certs.key, fresh.key.read_bytes())
    put(certs.cert, one.certificate.public_bytes(Encoding.PEM))
