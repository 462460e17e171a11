"""Which kinds of trouble the simulation makes: all of them, but where a known fault of the product is being mended."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Switches:
    """Trouble by name.

    Attributes:
        market: Changes of supplier and tenancy, blocks, suspensions, ends of appointments; now and due later.
        stalls: A node's processor stands still, and all that runs on it.
        lag: A node's copies are behind: its watches are slow.
        lost_events: A node's watches lose events for good.
        clocks: A wall clock is wrong by minutes.
        leaps: A node's monotonic clock leaps forward by seconds.
        clock_steps: Wall clocks step by hours and days, at one node and at all.
        lies: The head end tells what it was never asked, and of codes that were never made.
        refusals: Meters refuse codes, with and without saying why.
        keypad: Consumers enter codes by hand, whatever became of their delivery.
        late_codes: A code of two steps is sent after more than a hundred newer ones have been credited.
        foreign: A supplier that makes its own codes has them delivered.
        foreign_wrong: Now and then it says a wrong counter, of which the ten bits in the code are right.
        known: Parts of findings that are not counted, because what they name is being mended.
    """

    market: bool = True
    stalls: bool = True
    lag: bool = True
    lost_events: bool = True
    clocks: bool = True
    clock_steps: bool = True
    leaps: bool = True
    lies: bool = True
    refusals: bool = True
    keypad: bool = True
    late_codes: bool = True
    foreign: bool = True
    foreign_wrong: bool = True
    known: tuple[str, ...] = ()


SWITCHES = Switches()
