"""Checks of fields: one set for requests and for the lines of a registry file. A refusal names the field it is told."""

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf import timestamp_pb2

from core.access.certificates import UNREADABLE
from core.domain.appointment import INTERMEDIATES_MAX
from core.domain.effective_dated import Ms, ms_of
from core.domain.errors import BadField
from core.domain.meter import MeterId, parse_eui64
from core.domain.participant import Profile, parse_identities
from core.domain.vend import SOLD_THROUGH

# What one code can carry, and a hundred times that: the most of a threshold of a meter.
PENCE_MAX: Final = 819_100
THRESHOLD_PENCE_MAX: Final = 100 * PENCE_MAX
CREDIT_PENCE_MAX: Final = 10**10
# A meter can be in debt.
BALANCE_PENCE_MAX: Final = 10**9
SCHEMES: Final = frozenset({"gbcs"})
# The last millisecond that a timestamp can carry.
LATEST: Final = ms_of(datetime(9999, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC))
_CERTIFICATE_BYTES_MAX: Final = 4000
_AHEAD_MS: Final = 3653 * 86_400_000
_FINGERPRINT = re.compile(r"[0-9a-f]{64}", re.ASCII)
_KEY_ID = re.compile(r"(?:[0-9a-f]{2}){1,32}", re.ASCII)


def parse_text(text: str, name: str, *, least: int = 0, most: int = 40) -> str:
    """Return a text of printable characters without a slash; raise BadField if it is none."""
    if not least <= len(text) <= most or not text.isprintable() or "/" in text:
        raise BadField(f"{name}: {least} to {most} printable characters without / are needed", field=name)
    return text


def parse_point(point: bytes, name: str) -> bytes:
    """Return a point of P-256, 65 bytes uncompressed; raise BadField if it is none."""
    try:
        ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    except ValueError as error:
        raise BadField(f"{name}: a point of P-256, 65 bytes uncompressed, is needed", field=name) from error
    if len(point) != 65:
        raise BadField(f"{name}: the uncompressed form, 65 bytes, is needed", field=name)
    return point


def parse_certificate(raw: bytes, name: str) -> bytes:
    """Return a certificate in DER; raise BadField if it is none. Whose it is, and who issued it, is asked later."""
    try:
        x509.load_der_x509_certificate(raw)
    except UNREADABLE as error:
        raise BadField(f"{name}: an X.509 certificate in DER is needed", field=name) from error
    return raw


def parse_fingerprints(texts: Sequence[str], name: str) -> tuple[str, ...]:
    """Return SHA-256 fingerprints; raise BadField if one is none."""
    if not all(_FINGERPRINT.fullmatch(text) for text in texts):
        raise BadField(f"{name}: SHA-256 fingerprints in 64 lower-case hex digits are needed", field=name)
    return tuple(texts)


def parse_intermediates(raw: Sequence[bytes], name: str) -> tuple[bytes, ...]:
    """Return 0 to 4 certificates in DER; raise BadField if there are more, or one is none."""
    if len(raw) > INTERMEDIATES_MAX or any(len(encoded) > _CERTIFICATE_BYTES_MAX for encoded in raw):
        raise BadField(
            f"{name}: at most {INTERMEDIATES_MAX} certificates of {_CERTIFICATE_BYTES_MAX} bytes", field=name
        )
    return tuple(parse_certificate(encoded, name) for encoded in raw)


def parse_meter_id(text: str, name: str = "meter_id") -> MeterId:
    """Return an EUI-64; raise BadField if it is none."""
    return MeterId(parse_eui64(text, field=name))


def parse_key_id(text: str, name: str) -> str:
    """Return a CKA_ID; raise BadField if it is none."""
    if not _KEY_ID.fullmatch(text):
        raise BadField(f"{name}: the CKA_ID, 1 to 32 bytes in lower-case hex, is needed", field=name)
    return text


def parse_scheme(text: str, name: str) -> str:
    """Return a token scheme; raise BadField if it is none."""
    if text not in SCHEMES:
        raise BadField(f"{name}: one of {', '.join(sorted(SCHEMES))} is needed", field=name)
    return text


def parse_schemes(texts: Iterable[str], name: str) -> frozenset[str]:
    """Return token schemes; raise BadField if one is none."""
    return frozenset(parse_scheme(text, name) for text in texts)


def parse_uris(texts: Sequence[str], name: str) -> tuple[str, ...]:
    """Return SAN URIs, 1 to 20 and each told once; raise BadField if one is none.

    Source: RFC 5280 section 4.2.1.6 (a URI in a certificate is ASCII).
    """
    uris = parse_identities(tuple(texts), field=name)
    if len(set(uris)) < len(uris) or not all(identity.isascii() and identity.isprintable() for identity in uris):
        raise BadField(f"{name}: SAN URIs in ASCII, each told once, are needed", field=name)
    return uris


def number_in(number: int, name: str, allowed: Iterable[int]) -> int:
    """Return a number of an enum; raise BadField if it is not said, or not known."""
    if number not in set(allowed):
        raise BadField(f"{name}: is missing or not known", field=name)
    return number


def check_pence(pence: int, name: str, *, least: int = 0, most: int) -> int:
    """Return an amount within its bounds; raise BadField if it is not."""
    if not least <= pence <= most:
        raise BadField(f"{name}: {least} to {most} pence are needed", field=name)
    return pence


def check_amounts(least: int, most: int, name: str) -> None:
    """Return if the least and the most of one sale can be; raise BadField if not."""
    if not 1 <= least <= most <= PENCE_MAX:
        raise BadField(f"{name}: 1 <= min_pence <= max_pence <= {PENCE_MAX} is needed", field=name)


def check_profile(profile: Profile, name: str) -> Profile:
    """Return what a supplier chooses, as it was read; raise BadField if it cannot be."""
    for limit in profile.limits:
        number_in(limit.channel, f"{name}.limits.channel", SOLD_THROUGH | {0})
        check_amounts(limit.min_pence, limit.max_pence, f"{name}.limits")
    if len({limit.channel for limit in profile.limits}) < len(profile.limits):
        raise BadField(f"{name}.limits: at most one per channel", field=f"{name}.limits")
    credit = profile.credit
    check_pence(credit.each_max_pence, f"{name}.credit_each_max_pence", most=CREDIT_PENCE_MAX)
    check_pence(credit.day_max_pence, f"{name}.credit_day_max_pence", most=CREDIT_PENCE_MAX)
    return profile


def parse_approvers(texts: Sequence[str], name: str) -> frozenset[str]:
    """Return the SAN URIs that may approve credit, 0 to 20; raise BadField if one is none."""
    return frozenset(parse_uris(texts, name)) if texts else frozenset()


def check_instant(ms: int, name: str, *, now: Ms | None = None) -> Ms:
    """Return an instant; raise BadField if it is none that a timestamp can carry, or implausibly far ahead of `now`."""
    if not 0 <= ms <= LATEST:
        raise BadField(f"{name}: an instant of the years 1970 to 9999 is needed", field=name)
    if now is not None and ms > now + _AHEAD_MS:
        raise BadField(f"{name}: more than 10 years ahead; is it a mistake?", field=name)
    return Ms(ms)


def instant(message: timestamp_pb2.Timestamp, name: str, *, now: Ms | None = None) -> Ms:
    """Return a timestamp in milliseconds, rounded down; raise BadField as `check_instant`."""
    if not 0 <= message.nanos < 1_000_000_000:
        raise BadField(f"{name}: a timestamp is needed", field=name)
    return check_instant(message.seconds * 1000 + message.nanos // 1_000_000, name, now=now)


def check_passed(ms: Ms, name: str, now: Ms) -> Ms:
    """Return an instant that has passed; raise BadField if it has not."""
    if ms > now:
        raise BadField(f"{name}: an instant that has passed is needed", field=name)
    return ms
