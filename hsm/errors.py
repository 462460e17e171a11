"""CKR_* -> what follows from it: refuse to start, drop the session, or refuse one request."""

import pkcs11.exceptions as ckr


class HsmRefused(Exception):
    """The HSM will not let us in as configured; trying again could lock the token. An operator must act."""


class HsmUnfit(HsmRefused):
    """A file that the configuration names cannot be used: the library, or the PIN file.

    A node does not start with that; one that runs tries again, for the file may be under replacement.
    """


# Trying these again would count against the PIN, or change nothing until somebody changes the configuration.
_REFUSALS = (
    ckr.PinIncorrect,
    ckr.PinInvalid,
    ckr.PinLenRange,
    ckr.PinLocked,
    ckr.PinExpired,
    ckr.UserPinNotInitialized,
)


def refusal_of(error: ckr.PKCS11Error, *, token_label: str, pin_file: str) -> HsmRefused | None:
    """Return the refusal that `error` means at log-in; None if it may pass by itself.

    Every other error drops the session with all its handles: after CKR_DEVICE_ERROR or CKR_SESSION_HANDLE_INVALID an
    old handle may silently name another key.
    """
    if isinstance(error, _REFUSALS):
        kind = type(error).__name__
        return HsmRefused(f"hsm.pin_file: token {token_label!r} does not accept the PIN in {pin_file} ({kind})")
    return None
