"""One session with the HSM: keys found by CKA_ID and proven before first use, pairwise secrets kept in the HSM."""

import hashlib
import hmac
import os
import time
from collections import OrderedDict
from functools import lru_cache
from typing import Any

import pkcs11
import pkcs11.exceptions as ckr
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pkcs11.mechanisms import KDF

from core.domain.errors import KeyMissing, NotSupportedByMeter
from hsm.config import HsmConfig, read_pin

_P256_SCALAR_MAX = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_KNOWN_ANSWER_INFO = b"utrn known answer"
_SECRET_BYTES = 32
_KEY_BYTES = 16


# SoftHSM writes the token's file at a log-in, and another process that reads it in that moment finds no PIN in it. No
# PIN has been tried then, so none is counted against the token.
_LOG_IN_TRIES = 20
_LOG_IN_AGAIN_S = 0.1


def _log_in(token: Any, pin: str) -> Any:
    """Return a session that is logged in.

    Raises:
        pkcs11.exceptions.PKCS11Error: whatever the HSM says.
    """
    for _ in range(_LOG_IN_TRIES - 1):
        try:
            return token.open(user_pin=pin)
        except ckr.UserPinNotInitialized:
            time.sleep(_LOG_IN_AGAIN_S)
    return token.open(user_pin=pin)


class HsmSession:
    """Logged in, single-threaded, in a process of its own."""

    def __init__(self, config: HsmConfig, pin: str | None = None) -> None:
        """Log in, with `pin` if it was read already, else with what the PIN file says now.

        Raises:
            pkcs11.exceptions.PKCS11Error: whatever the HSM says.
            OSError: the PIN cannot be read.
        """
        if config.softhsm_conf is not None:
            os.environ["SOFTHSM2_CONF"] = str(config.softhsm_conf)
        library = pkcs11.lib(str(config.module))
        token = library.get_token(token_label=config.token_label)
        self._session = _log_in(token, pin if pin is not None else read_pin(config))
        self._secrets_max = config.secrets_max
        self._private_keys: dict[tuple[str, bytes], pkcs11.PrivateKey] = {}
        self._secrets: OrderedDict[tuple[str, bytes], pkcs11.SecretKey] = OrderedDict()

    def digest_of_secret(self, key_id: str, public_point: bytes, peer: bytes, before: bytes, after: bytes) -> bytes:
        """Return the first 16 bytes of SHA-256(before | Z | after), computed inside the HSM.

        Args:
            key_id: CKA_ID of the private key, hex.
            public_point: The public point the private key must have, 65 bytes.
            peer: The other party's public point, 65 bytes.
            before: Hashed before the shared secret.
            after: Hashed after the shared secret.

        Raises:
            KeyMissing: no such key, or the key under that CKA_ID is another one.
            NotSupportedByMeter: `peer` is not a point of P-256.

        Source: NIST SP 800-56A concatenation KDF, as GBCS 4.3.3 uses it.
        """
        secret = self._secret(key_id, public_point, peer)
        return self._digest(before, secret, after)

    def has_key(self, key_id: str, public_point: bytes) -> bool:
        """Return whether the private key is there now, and is the one that belongs to `public_point`.

        A handle kept from before proves nothing: the key may have been taken away, or replaced.
        """
        self._private_keys.pop((key_id, public_point), None)
        try:
            self._private_key(key_id, public_point)
        except KeyMissing:
            return False
        return True

    def probe(self) -> None:
        """Ask the HSM for a sign of life, as cheaply as it can give one.

        Raises:
            pkcs11.exceptions.PKCS11Error: whatever the HSM says.
        """
        self._session.generate_random(64)

    def _digest(self, before: bytes, secret: pkcs11.SecretKey, after: bytes) -> bytes:
        digest: bytes = self._session.digest(iter((before, secret, after)), mechanism=pkcs11.Mechanism.SHA256)
        return digest[:_KEY_BYTES]

    def _secret(self, key_id: str, public_point: bytes, peer: bytes) -> pkcs11.SecretKey:
        # The private key comes first: a secret made with a key that was not proven must not be used either.
        private_key = self._private_key(key_id, public_point)
        secret = self._secrets.get((key_id, peer))
        if secret is None:
            secret = self._derive(private_key, peer)
            self._secrets[(key_id, peer)] = secret
            if len(self._secrets) > self._secrets_max:
                self._secrets.popitem(last=False)[1].destroy()
        else:
            self._secrets.move_to_end((key_id, peer))
        return secret

    def _derive(self, private_key: pkcs11.PrivateKey, peer: bytes) -> pkcs11.SecretKey:
        try:
            ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), peer)
        except ValueError as error:
            raise NotSupportedByMeter(
                "the meter's registered public key is no point of P-256", scheme="gbcs"
            ) from error
        template: dict[pkcs11.Attribute, Any] = {
            pkcs11.Attribute.TOKEN: False,
            pkcs11.Attribute.SENSITIVE: True,
            pkcs11.Attribute.EXTRACTABLE: False,
            pkcs11.Attribute.VALUE_LEN: _SECRET_BYTES,
        }
        # The binding adds derive_key to a key only when it sees CKA_DERIVE, so its type does not have it.
        deriving: Any = private_key
        secret: pkcs11.SecretKey = deriving.derive_key(
            pkcs11.KeyType.GENERIC_SECRET,
            _SECRET_BYTES * 8,
            mechanism=pkcs11.Mechanism.ECDH1_DERIVE,
            mechanism_param=(KDF.NULL, None, peer),
            template=template,
        )
        return secret

    def _private_key(self, key_id: str, public_point: bytes) -> pkcs11.PrivateKey:
        known = self._private_keys.get((key_id, public_point))
        if known is not None:
            return known
        try:
            found = self._session.get_key(object_class=pkcs11.ObjectClass.PRIVATE_KEY, id=bytes.fromhex(key_id))
        except (pkcs11.exceptions.NoSuchKey, pkcs11.exceptions.MultipleObjectsReturned) as error:
            raise KeyMissing(
                "the supplier's prepayment key is not in this HSM (or more than once); import it with `utrn hsm`",
                key_id=key_id,
            ) from error
        if not isinstance(found, pkcs11.PrivateKey):
            raise KeyMissing("what the HSM has under this key id is no private key", key_id=key_id)
        self._prove(found, key_id, public_point)
        self._private_keys[(key_id, public_point)] = found
        return found

    def _prove(self, private_key: pkcs11.PrivateKey, key_id: str, public_point: bytes) -> None:
        """Run the known-answer test: the key must agree with the public point that the registry has for it.

        A handle or a CKA_ID proves nothing: after a reset it may name another key, whose codes no meter would take.
        """
        secret = self._derive(private_key, known_answer_peer())
        try:
            answer = self._digest(b"", secret, _KNOWN_ANSWER_INFO)
        finally:
            secret.destroy()
        if not hmac.compare_digest(answer, known_answer(public_point)):
            raise KeyMissing("the key under this id in the HSM is not the one the registry names", key_id=key_id)


@lru_cache(maxsize=1)
def _known_answer_key() -> ec.EllipticCurvePrivateKey:
    scalar = int.from_bytes(hashlib.sha256(b"utrn known-answer peer").digest(), "big") % _P256_SCALAR_MAX
    return ec.derive_private_key(scalar, ec.SECP256R1())


@lru_cache(maxsize=1)
def known_answer_peer() -> bytes:
    """Return the public point of the known-answer test's other party; its private key is public, it guards nothing."""
    return _known_answer_key().public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def known_answer(public_point: bytes) -> bytes:
    """Return what the HSM must answer if its private key belongs to `public_point`, computed in software.

    Raises:
        KeyMissing: `public_point` is no point of P-256.
    """
    try:
        public_key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), public_point)
    except ValueError as error:
        raise KeyMissing("the registry's public point of the supplier is no point of P-256") from error
    secret = _known_answer_key().exchange(ec.ECDH(), public_key)
    return hashlib.sha256(secret + _KNOWN_ANSWER_INFO).digest()[:_KEY_BYTES]
