"""One meter: what it knows, and what it does with a code, by air or by keypad. No I/O.

The order of the middle checks is not confirmed by any source at hand, so `mac_before_duplicate` chooses it.
"""

from dataclasses import dataclass, field
from enum import Enum

from sandbox.codes import Malformed, Token, mac_is_right, read_token, rebuild_counter, shared_secret


class Alert(Enum):
    """GBCS alert codes a meter raises about codes."""

    CREDIT_ADDED_LOCALLY = 0x810E
    MAX_BALANCE = 0x8F47
    DUPLICATE = 0x8F51
    MAX_CREDIT = 0x8F5B
    NOT_AUTHENTIC = 0x8F63
    NOT_FOR_THIS_DEVICE = 0x8F64
    KEYPAD_SUSPENDED = 0x81C4
    KEYPAD_LOCKED_OUT = 0x81C5


class Result(Enum):
    """What became of a code at the meter."""

    APPLIED = "applied"
    DUPLICATE = "duplicate"
    MALFORMED = "malformed"
    NOT_AUTHENTIC = "not authentic"
    MAX_CREDIT = "above maximum credit"
    MAX_BALANCE = "above maximum balance"
    LOCKED = "keypad locked"


_ALERTS = {
    Result.DUPLICATE: Alert.DUPLICATE,
    Result.NOT_AUTHENTIC: Alert.NOT_AUTHENTIC,
    Result.MAX_CREDIT: Alert.MAX_CREDIT,
    Result.MAX_BALANCE: Alert.MAX_BALANCE,
}


@dataclass(frozen=True, slots=True)
class Rules:
    """What suppliers and makers choose.

    Attributes:
        cache_size: Counters remembered; size and eviction are unconfirmed for real meters.
        mac_before_duplicate: Which of two checks comes first; unconfirmed.
        keypad_tries: Wrong entries in a row that lock the keypad.
    """

    cache_size: int = 100
    mac_before_duplicate: bool = False
    keypad_tries: int = 5


@dataclass(frozen=True, slots=True)
class Credit:
    """Money that went onto the balance."""

    originator_id: str
    counter: int
    utrn: str
    pence: int
    keypad: bool


@dataclass(frozen=True, slots=True)
class Handled:
    """What a code led to: the result, the credit if any, the alert if any."""

    result: Result
    credit: Credit | None = None
    alert: Alert | None = None
    originator_id: str = ""
    counter: int = 0


@dataclass(slots=True)
class Meter:
    """A meter's keys, limits and memory. `originators` maps EUI-64 to a 65-byte public point."""

    meter_id: str
    gas: bool
    scalar: int
    originators: dict[str, bytes]
    max_credit_pence: int
    max_balance_pence: int
    rules: Rules = field(default_factory=Rules)
    balance_pence: int = 0
    caches: dict[str, list[int]] = field(default_factory=dict)
    credits: int = 0
    wrong_entries: int = 0
    _secrets: dict[str, bytes] = field(default_factory=dict)

    def over_the_air(self, utrn: str, originator_id: str, originator_counter: int) -> Handled:
        """Handle an Add Credit, which brings the whole counter with it."""
        try:
            token = read_token(utrn)
        except Malformed:
            return Handled(Result.MALFORMED)
        counter = originator_counter >> 32
        if originator_id not in self.originators or token.counter_bits != counter % 1024:
            return self._refused(Result.NOT_AUTHENTIC, originator_id, counter)
        return self._judge(token, utrn, originator_id, originator_counter, keypad=False)

    def keypad(self, digits: str) -> Handled:
        """Handle an entry by the consumer: the counter is rebuilt from its ten bits."""
        if self.wrong_entries >= self.rules.keypad_tries:
            return Handled(Result.LOCKED, alert=Alert.KEYPAD_LOCKED_OUT)
        try:
            token = read_token(digits)
        except Malformed:
            return self._wrong_entry(Handled(Result.MALFORMED))
        handled = Handled(Result.NOT_AUTHENTIC, alert=Alert.NOT_FOR_THIS_DEVICE)
        for originator_id in self.originators:
            counter = rebuild_counter(token.counter_bits, self.highest(originator_id))
            handled = self._judge(token, digits, originator_id, counter << 32, keypad=True) if counter > 0 else handled
            if handled.result is not Result.NOT_AUTHENTIC:
                break
        if handled.result is Result.NOT_AUTHENTIC:
            return self._wrong_entry(handled)
        self.wrong_entries = 0
        return handled

    def unlock(self) -> None:
        """Let the keypad be used again, as time does."""
        self.wrong_entries = 0

    def highest(self, originator_id: str) -> int:
        """Return the highest counter credited for an originator; 0 for none."""
        return max(self.caches.get(originator_id, ()), default=0)

    def remember(self, credit: Credit) -> None:
        """Put a credit onto the balance and its counter into the cache."""
        self.balance_pence += credit.pence
        self.credits += 1
        cache = self.caches.setdefault(credit.originator_id, [])
        cache.append(credit.counter)
        if len(cache) > self.rules.cache_size:
            cache.remove(min(cache))

    def _judge(self, token: Token, utrn: str, originator_id: str, wide: int, *, keypad: bool) -> Handled:
        counter = wide >> 32
        checks = [self._duplicate, self._not_authentic]
        if self.rules.mac_before_duplicate:
            checks.reverse()
        for check in checks:
            result = check(token, originator_id, wide)
            if result is not None:
                return self._refused(result, originator_id, counter)
        if token.pence > self.max_credit_pence:
            return self._refused(Result.MAX_CREDIT, originator_id, counter)
        if self.balance_pence + token.pence > self.max_balance_pence:
            return self._refused(Result.MAX_BALANCE, originator_id, counter)
        credit = Credit(originator_id, counter, utrn, token.pence, keypad)
        self.remember(credit)
        alert = Alert.CREDIT_ADDED_LOCALLY if keypad else None
        return Handled(Result.APPLIED, credit, alert, originator_id, counter)

    def _duplicate(self, _: Token, originator_id: str, wide: int) -> Result | None:
        cache, counter = self.caches.get(originator_id, []), wide >> 32
        full = len(cache) >= self.rules.cache_size
        return Result.DUPLICATE if counter in cache or (full and counter < min(cache)) else None

    def _not_authentic(self, token: Token, originator_id: str, wide: int) -> Result | None:
        if originator_id not in self._secrets:
            self._secrets[originator_id] = shared_secret(self.scalar, self.originators[originator_id])
        right = mac_is_right(
            token,
            secret=self._secrets[originator_id],
            originator_id=originator_id,
            meter_id=self.meter_id,
            originator_counter=wide,
        )
        return None if right else Result.NOT_AUTHENTIC

    def _wrong_entry(self, handled: Handled) -> Handled:
        self.wrong_entries += 1
        if self.wrong_entries >= self.rules.keypad_tries:
            return Handled(handled.result, alert=Alert.KEYPAD_SUSPENDED)
        return handled

    @staticmethod
    def _refused(result: Result, originator_id: str, counter: int) -> Handled:
        return Handled(result, None, _ALERTS.get(result), originator_id, counter)
