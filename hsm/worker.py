"""One worker: a process of its own with one session and one thread; `python -m hsm.worker`, started by WorkerProcess.

PKCS#11 lives here and nowhere else: the binding initialises the library without locking, so threads would crash it.
"""

import ctypes
import errno
import os
import signal
import sys
from functools import partial
from multiprocessing.connection import Connection

import pkcs11.exceptions as ckr

from core.domain.errors import HsmUnavailable, NotSupportedByMeter, UtrnError
from core.domain.utrn import Utrn
from core.domain.utrn_value import CodeValue, ValueClass
from hsm.config import HsmConfig
from hsm.errors import refusal_of
from hsm.schemes.table import SCHEMES
from hsm.session import HsmSession

# scheme, key id, supplier's point, originator id, meter id, meter's point, counter, value class, value.
Work = tuple[str, str, bytes, str, str, bytes, int, int, int]
Signed = Utrn | UtrnError
# A question instead of a batch: key id and public point; answered by ("has", bool). An empty batch asks for life.
KeyQuestion = tuple[str, bytes]


_PR_SET_PDEATHSIG = 1
# The machine lacks something for a moment; no file of the configuration is wrong.
_PASSING = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR}


def main(pipe: Connection, parent: int) -> None:
    """Read the configuration, log in, say so, then answer batches until the parent is gone or the HSM fails.

    Messages from the parent: an HsmConfig and the PIN (None: it is in its file), once; then batches (a list of Work)
    and key questions.
    Messages to the parent: ("ready",), ("refused", text), ("unfit", text), ("down", text),
    ("signed", [code or error per request]), ("has", whether a key is there and is the one it should be).
    After "refused", "unfit" and "down" the process ends, and every handle with it.

    Args:
        pipe: To the parent.
        parent: Its process id.
    """
    # A signal to the whole process group must not take the keys away from a parent that is still draining.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if not _dies_with(parent):
        return
    try:
        config, pin = pipe.recv()
        session = _open(pipe, config, pin)
        if session is not None:
            _answer(pipe, session)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _dies_with(parent: int) -> bool:
    """Have the kernel end this process when its parent ends, even in the middle of a call into the HSM's library.

    The pipe alone would be noticed only between two batches. False if the parent has ended already.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    return os.getppid() == parent


def _open(pipe: Connection, config: HsmConfig, pin: str | None) -> HsmSession | None:
    try:
        session = HsmSession(config, pin)
    except ckr.PKCS11Error as error:
        refused = refusal_of(error, token_label=config.token_label, pin_file=str(config.pin_file))
        pipe.send(("down", type(error).__name__) if refused is None else ("refused", str(refused)))
        return None
    except (OSError, RuntimeError, UnicodeDecodeError) as error:
        passes = isinstance(error, OSError) and error.errno in _PASSING
        pipe.send(("down" if passes else "unfit", f"hsm: {error}"))
        return None
    pipe.send(("ready",))
    return session


def _answer(pipe: Connection, session: HsmSession) -> None:
    while True:
        batch: list[Work] | KeyQuestion = pipe.recv()
        try:
            if isinstance(batch, tuple):
                pipe.send(("has", session.has_key(*batch)))
                continue
            if not batch:
                session.probe()
            signed = [_sign(session, work) for work in batch]
        except ckr.PKCS11Error as error:
            pipe.send(("down", type(error).__name__))
            return
        pipe.send(("signed", signed))


def _sign(session: HsmSession, work: Work) -> Signed:
    scheme, key_id, public_point, originator_id, meter_id, meter_point, counter, value_class, value = work
    make = SCHEMES.get(scheme)
    if make is None:
        return NotSupportedByMeter("no token scheme of this name is installed", scheme=scheme)
    try:
        return make(
            originator_id=originator_id,
            meter_id=meter_id,
            counter=counter,
            value=CodeValue(ValueClass(value_class), value),
            aes_key=partial(session.digest_of_secret, key_id, public_point, meter_point),
        )
    except UtrnError as error:
        return error
    except ValueError as error:
        return HsmUnavailable(f"the HSM worker was asked for an impossible code: {error}")


if __name__ == "__main__":
    main(Connection(int(sys.argv[1])), int(sys.argv[2]))
