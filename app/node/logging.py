"""Logs as JSON lines on standard error, one object per event; never a secret, never a UTRN."""

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, TextIO

import structlog

from core.domain.mask import masked

_LINE_MAX: Final = 4096
# Standard error as it was, while descriptor 2 is a pipe.
_real: list[TextIO] = []
_LAST_LINES_S: Final = 1.0
log = logging.getLogger(__name__)


def set_up_logs(level: str, to: TextIO | None = None) -> None:
    """Send everything that is logged at `level` or above to standard error.

    Args:
        level: DEBUG, INFO, WARNING or ERROR.
        to: Where to instead.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _mask,
    ]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.JSONRenderer(),
        ],
    )
    handler = logging.StreamHandler(sys.stderr if to is None else to)
    handler.setFormatter(formatter)
    logging.basicConfig(level=level, handlers=[handler], force=True)


def _mask(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Mask numbers of cards and codes in what others have worded: an exception's text, a library's line."""
    for key in ("exception", "line"):
        if isinstance(told := event.get(key), str):
            event[key] = masked(told)
    return event


def plain_stderr() -> TextIO:
    """Return standard error itself: for what must be written even if no thread of this process runs any more."""
    return _real[-1] if _real else sys.stderr


@contextmanager
def all_of_it_json(level: str) -> Iterator[None]:
    """Log to standard error, and have what libraries and other processes write there on their own be an event each.

    gRPC's core and PKCS#11 libraries write lines of their own, past Python's logging, to descriptor 2. It is a pipe
    while this lasts, read by a thread; the log itself does not go through it.
    """
    readable, writable = os.pipe()
    real = os.fdopen(os.dup(2), "w", encoding="utf-8", buffering=1, errors="backslashreplace")
    set_up_logs(level, real)
    sys.stderr.flush()
    os.dup2(writable, 2)
    os.close(writable)
    reading = threading.Thread(target=_tell_lines, args=(readable,), name="foreign lines", daemon=True)
    reading.start()
    _real.append(real)
    try:
        yield
    finally:
        _real.remove(real)
        sys.stderr.flush()
        os.dup2(real.fileno(), 2)
        reading.join(_LAST_LINES_S)
        set_up_logs(level)


def _tell_lines(readable: int) -> None:
    """Log every line that comes; none is longer than `_LINE_MAX` bytes."""
    with os.fdopen(readable, "rb") as lines:
        while line := lines.readline(_LINE_MAX):
            text = line.decode("utf-8", "backslashreplace").rstrip()
            if text:
                log.warning("written past the log", extra={"line": text})
