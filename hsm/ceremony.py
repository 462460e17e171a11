"""Key ceremony: make a token, import or generate a supplier's prepayment key, list keys; each leaves an audit line.

Runs in a process of its own (the command line); never beside a worker in one process.
"""

import ctypes
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pkcs11
import pkcs11.exceptions as ckr
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from pkcs11.util.ec import encode_named_curve_parameters

from hsm.config import HsmConfig

_LABEL_BYTES = 32
_POINT_BYTES = 65
_CKR_OK = 0


class CeremonyRefused(Exception):
    """The ceremony was not carried out; the message says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyEntry:
    """One prepayment key in the token. `public_point` is 65 bytes uncompressed, in hex; empty if it is not stored."""

    label: str
    key_id: str
    public_point: str
    extractable: bool
    sensitive: bool
    never_left: bool


def new_pin_file(path: Path) -> None:
    """Write a random PIN that only the owner can read; leave an existing file alone."""
    if not path.exists():
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(16) + "\n")


def init_token(config: HsmConfig, so_pin_file: Path, *, now: datetime, audit: Path | None = None) -> None:
    """Make the token of `config` in a free slot, with the PINs in the two files.

    The binding cannot do C_InitToken, and the vendor's tools want PINs in argv: so this one call is made directly.

    Raises:
        CeremonyRefused: the token exists, or the HSM said no.
    """
    library = _library(config)
    if any(token.label == config.token_label for token in _tokens(library)):
        raise CeremonyRefused(f"a token named {config.token_label!r} exists already; it is left as it is")
    so_pin = _pin(so_pin_file)
    slot = _free_slot(library)
    native = ctypes.CDLL(str(config.module))
    label = config.token_label.encode("utf-8").ljust(_LABEL_BYTES)
    result = native.C_InitToken(ctypes.c_ulong(slot), so_pin, ctypes.c_ulong(len(so_pin)), label)
    if result != _CKR_OK:
        raise CeremonyRefused(f"the HSM did not make the token (C_InitToken: 0x{result:X})")
    library.reinitialize()
    token = library.get_token(token_label=config.token_label)
    with token.open(rw=True, so_pin=so_pin.decode("ascii")) as session:
        session.init_pin(_pin(config.pin_file).decode("ascii"))
    _audit(audit, now, "init-token", token=config.token_label)


def import_key(
    config: HsmConfig, pem_file: Path, *, key_id: str, label: str, now: datetime, audit: Path | None = None
) -> KeyEntry:
    """Store the P-256 private key of `pem_file` in the token, never to come out again.

    Raises:
        CeremonyRefused: the file holds no such key, or the key id is taken.
    """
    try:
        private_key = load_pem_private_key(pem_file.read_bytes(), password=None)
    except (ValueError, TypeError) as error:
        raise CeremonyRefused(f"{pem_file}: no private key in PEM without a password") from error
    if not isinstance(private_key, ec.EllipticCurvePrivateKey) or not isinstance(private_key.curve, ec.SECP256R1):
        raise CeremonyRefused(f"{pem_file}: not a P-256 key, which GBCS demands")
    scalar = private_key.private_numbers().private_value
    return store_scalar(config, scalar, key_id=key_id, label=label, now=now, audit=audit)


def store_scalar(
    config: HsmConfig, scalar: int, *, key_id: str, label: str, now: datetime, audit: Path | None = None
) -> KeyEntry:
    """Store a P-256 private scalar in the token, never to come out again.

    Raises:
        CeremonyRefused: the key id is taken.
    """
    public_key = ec.derive_private_key(scalar, ec.SECP256R1()).public_key()
    point = public_key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    with _logged_in(config) as session:
        _check_free(session, key_id)
        session.create_object(
            {
                **_private_attributes(key_id, label),
                pkcs11.Attribute.CLASS: pkcs11.ObjectClass.PRIVATE_KEY,
                pkcs11.Attribute.KEY_TYPE: pkcs11.KeyType.EC,
                pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1"),
                pkcs11.Attribute.VALUE: scalar.to_bytes(32, "big"),
            }
        )
        session.create_object(
            {
                **_public_attributes(key_id, label),
                pkcs11.Attribute.CLASS: pkcs11.ObjectClass.PUBLIC_KEY,
                pkcs11.Attribute.KEY_TYPE: pkcs11.KeyType.EC,
                pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1"),
                pkcs11.Attribute.EC_POINT: b"\x04\x41" + point,
            }
        )
        _audit(audit, now, "import-key", token=config.token_label, key_id=key_id, label=label)
        return _entry(session, key_id)


def generate_key(config: HsmConfig, *, key_id: str, label: str, now: datetime, audit: Path | None = None) -> KeyEntry:
    """Have the HSM make a P-256 key of its own.

    Raises:
        CeremonyRefused: the key id is taken.
    """
    with _logged_in(config) as session:
        _check_free(session, key_id)
        curve = session.create_domain_parameters(
            pkcs11.KeyType.EC, {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}, local=True
        )
        curve.generate_keypair(
            store=True,
            public_template=_public_attributes(key_id, label),
            private_template=_private_attributes(key_id, label),
        )
        _audit(audit, now, "generate-key", token=config.token_label, key_id=key_id, label=label)
        return _entry(session, key_id)


def list_keys(config: HsmConfig) -> list[KeyEntry]:
    """Return the private keys of the token, by key id."""
    with _logged_in(config) as session:
        # A search must have ended before the next call in the session: hence a list.
        found = list(session.get_objects({pkcs11.Attribute.CLASS: pkcs11.ObjectClass.PRIVATE_KEY}))
        return sorted((_entry(session, key[pkcs11.Attribute.ID].hex()) for key in found), key=lambda one: one.key_id)


def _private_attributes(key_id: str, label: str) -> dict[pkcs11.Attribute, Any]:
    return {
        pkcs11.Attribute.ID: bytes.fromhex(key_id),
        pkcs11.Attribute.LABEL: label,
        pkcs11.Attribute.TOKEN: True,
        pkcs11.Attribute.PRIVATE: True,
        pkcs11.Attribute.SENSITIVE: True,
        pkcs11.Attribute.EXTRACTABLE: False,
        pkcs11.Attribute.DERIVE: True,
        # The prepayment key agrees secrets and does nothing else (GBCS: dedicated key-agreement key).
        pkcs11.Attribute.SIGN: False,
    }


def _public_attributes(key_id: str, label: str) -> dict[pkcs11.Attribute, Any]:
    return {
        pkcs11.Attribute.ID: bytes.fromhex(key_id),
        pkcs11.Attribute.LABEL: label,
        pkcs11.Attribute.TOKEN: True,
    }


def _check_free(session: pkcs11.Session, key_id: str) -> None:
    if any(True for _ in session.get_objects({pkcs11.Attribute.ID: bytes.fromhex(key_id)})):
        raise CeremonyRefused(
            f"key id {key_id} is taken; keys are never overwritten: choose another or retire it first"
        )


def _entry(session: pkcs11.Session, key_id: str) -> KeyEntry:
    private_key = session.get_key(object_class=pkcs11.ObjectClass.PRIVATE_KEY, id=bytes.fromhex(key_id))
    try:
        public_key = session.get_key(object_class=pkcs11.ObjectClass.PUBLIC_KEY, id=bytes.fromhex(key_id))
        point = public_key[pkcs11.Attribute.EC_POINT][-_POINT_BYTES:].hex()
    except ckr.NoSuchKey:
        point = ""
    return KeyEntry(
        label=str(private_key.label),
        key_id=key_id,
        public_point=point,
        extractable=bool(private_key[pkcs11.Attribute.EXTRACTABLE]),
        sensitive=bool(private_key[pkcs11.Attribute.SENSITIVE]),
        never_left=bool(private_key[pkcs11.Attribute.NEVER_EXTRACTABLE]),
    )


@contextmanager
def _logged_in(config: HsmConfig) -> Iterator[pkcs11.Session]:
    library = _library(config)
    try:
        token = library.get_token(token_label=config.token_label)
        session = token.open(rw=True, user_pin=_pin(config.pin_file).decode("ascii"))
    except ckr.NoSuchToken as error:
        raise CeremonyRefused(
            f"there is no token named {config.token_label!r}; make it with `utrn hsm init`"
        ) from error
    except (ckr.PinIncorrect, ckr.PinLocked) as error:
        kind = type(error).__name__
        raise CeremonyRefused(f"the token does not accept the PIN in {config.pin_file} ({kind})") from error
    except (ckr.PKCS11Error, RuntimeError) as error:
        raise CeremonyRefused(f"the HSM cannot be used: {type(error).__name__}") from error
    with session:
        try:
            yield session
        except ckr.PKCS11Error as error:
            raise CeremonyRefused(f"the HSM did not do it: {type(error).__name__}") from error


def _library(config: HsmConfig) -> Any:  # the binding's class has no public name
    if config.softhsm_conf is not None:
        os.environ["SOFTHSM2_CONF"] = str(config.softhsm_conf)
    try:
        library = pkcs11.lib(str(config.module))
    except (ckr.PKCS11Error, RuntimeError) as error:
        raise CeremonyRefused(f"{config.module} cannot be used as a PKCS#11 library: {error}") from error
    # Tokens that another process has made or removed are seen only after this.
    library.reinitialize()
    return library


def _tokens(library: Any) -> Iterator[pkcs11.Token]:  # as above
    for slot in library.get_slots(token_present=True):
        try:
            yield slot.get_token()
        except ckr.TokenNotRecognised:
            continue


def _free_slot(library: Any) -> int:  # as above
    for slot in library.get_slots(token_present=True):
        try:
            token = slot.get_token()
        except ckr.TokenNotRecognised:
            return int(slot.slot_id)
        if not token.flags & pkcs11.TokenFlag.TOKEN_INITIALIZED:
            return int(slot.slot_id)
    raise CeremonyRefused("the HSM has no free slot for a token")


def _pin(path: Path) -> bytes:
    try:
        return path.read_text(encoding="ascii").strip().encode("ascii")
    except OSError as error:
        raise CeremonyRefused(f"the PIN cannot be read from {path}: {error.strerror}") from error


def _audit(path: Path | None, now: datetime, act: str, **facts: str) -> None:
    """Append who did what to which key. The PIN and the key are not among the facts."""
    if path is None:
        return
    line = {"at": now.isoformat(), "act": act, "uid": os.getuid(), **facts}
    # Nobody but its owner writes what is evidence.
    try:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        told = f"{act} is done, and its line cannot be written to {path} ({error.strerror}): write it down by hand"
        raise CeremonyRefused(told) from error


def as_json(entry: KeyEntry) -> dict[str, Any]:
    """Return `entry` as plain values."""
    return asdict(entry)
