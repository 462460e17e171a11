"""Which token schemes there are. A new one is a module beside gbcs.py and a line here."""

from collections.abc import Callable, Mapping
from typing import Protocol

from core.domain.utrn import Utrn
from core.domain.utrn_value import CodeValue
from hsm.schemes import gbcs


class Scheme(Protocol):
    """Makes a code; `aes_key` answers with the key of one counter, from the HSM."""

    def __call__(
        self,
        *,
        originator_id: str,
        meter_id: str,
        counter: int,
        value: CodeValue,
        aes_key: Callable[[bytes, bytes], bytes],
    ) -> Utrn:
        """Return the code."""
        ...


SCHEMES: Mapping[str, Scheme] = {gbcs.NAME: gbcs.code}
