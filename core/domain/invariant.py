"""check(): asserts that survive `python -O`. A failed check is a bug and ends the process."""


class InvariantBroken(BaseException):
    """A promise of this program does not hold. A BaseException, so that no `except Exception` continues past it."""


def check(holds: bool, promise: str) -> None:
    """Raise InvariantBroken unless `holds`; `promise` states what should be true."""
    if not holds:
        raise InvariantBroken(promise)
