"""Logging in beside another process: what is read in the middle of a write is read again, and a PIN is tried once."""

import pkcs11.exceptions as ckr
import pytest

import hsm.session
from hsm.session import _log_in


class Token:
    """Says this before it lets anybody in."""

    def __init__(self, *says: Exception) -> None:
        self._says = list(says)
        self.tried = 0

    def open(self, *, user_pin: str) -> str:
        self.tried += 1
        if self._says:
            raise self._says.pop(0)
        return f"in by {user_pin}"


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hsm.session, "_LOG_IN_AGAIN_S", 0.0)


def test_a_token_without_a_pin_is_looked_at_again() -> None:
    token = Token(ckr.UserPinNotInitialized(), ckr.UserPinNotInitialized())
    assert (_log_in(token, "1234"), token.tried) == ("in by 1234", 3)


def test_one_that_stays_without_is_refused() -> None:
    with pytest.raises(ckr.UserPinNotInitialized):
        _log_in(Token(*(ckr.UserPinNotInitialized() for _ in range(hsm.session._LOG_IN_TRIES))), "1234")


@pytest.mark.parametrize("says", [ckr.PinIncorrect(), ckr.PinLocked()])
def test_a_wrong_pin_is_tried_once(says: Exception) -> None:
    token = Token(says)
    with pytest.raises(type(says)):
        _log_in(token, "1234")
    assert token.tried == 1
