"""Keys that were never there, are lost, and come back: found out without a sale, and told for each supplier."""

from dataclasses import replace

from core.domain.participant import ParticipantId, SupplierKey
from core.operations.key_monitor import KeyMonitor, MissingKey
from tests.fakes.clock import HandClock
from tests.support.vends import KEY, SUPPLIER_ID

OTHER_ID = ParticipantId("supplier-other")
OTHER = replace(KEY, key_id="02")


class Token:
    """An HSM with some keys. `asked` counts how often it was."""

    def __init__(self, *there: SupplierKey) -> None:
        self.there, self.doubts, self.asked = set(there), set[SupplierKey](), list[SupplierKey]()
        self.away = False

    async def has_key(self, key: SupplierKey) -> bool | None:
        self.asked.append(key)
        return None if self.away else key in self.there

    def doubted(self) -> set[SupplierKey]:
        doubts, self.doubts = self.doubts, set()
        return doubts


def _watch(token: Token, clock: HandClock, keys: dict[ParticipantId, SupplierKey] | None = None) -> KeyMonitor:
    registered = {SUPPLIER_ID: KEY, OTHER_ID: OTHER} if keys is None else keys
    return KeyMonitor(keys=lambda: registered, finder=token, clock=clock)


async def test_a_missing_key_is_told_with_its_supplier_and_looked_for_until_it_comes() -> None:
    token, clock = Token(KEY), HandClock()
    watch = _watch(token, clock)
    assert (watch.missing, watch.complete) == ([], False), "what was never looked for is neither"
    await watch.look()
    assert watch.missing == [MissingKey(OTHER_ID, "02")]
    assert (str(watch.missing[0]), watch.complete) == ("supplier-other/02", False)
    token.there.add(OTHER)
    await watch.look()
    assert (watch.missing, watch.complete) == ([], True)


async def test_a_key_that_is_lost_later_is_found_out_by_looking_again() -> None:
    token, clock = Token(KEY, OTHER), HandClock()
    watch = _watch(token, clock)
    await watch.look()
    token.there.discard(KEY)
    await watch.look()
    assert watch.complete, "a fresh proof is not renewed at once"
    clock.advance(31)
    await watch.look()
    assert watch.missing == [MissingKey(SUPPLIER_ID, "01")]


async def test_a_key_that_a_sale_did_not_find_is_looked_for_at_once() -> None:
    token, clock = Token(KEY, OTHER), HandClock()
    watch = _watch(token, clock)
    await watch.look()
    token.there.discard(OTHER)
    token.doubts.add(OTHER)
    await watch.look()
    assert watch.missing == [MissingKey(OTHER_ID, "02")]


async def test_an_hsm_that_says_nothing_changes_nothing() -> None:
    token, clock = Token(KEY, OTHER), HandClock()
    watch = _watch(token, clock)
    await watch.look()
    token.away = True
    clock.advance(31)
    await watch.look()
    assert (watch.missing, watch.complete) == ([], True)


async def test_the_key_of_a_supplier_that_has_left_is_missed_by_nobody() -> None:
    token, clock, keys = Token(KEY), HandClock(), {SUPPLIER_ID: KEY, OTHER_ID: OTHER}
    watch = _watch(token, clock, keys)
    await watch.look()
    assert watch.missing
    del keys[OTHER_ID]
    assert (watch.missing, watch.complete) == ([], True)
    token.asked.clear()
    await watch.look()
    assert token.asked == []


async def test_old_proofs_are_renewed_a_few_at_a_time_oldest_first() -> None:
    keys = {ParticipantId(f"s{number:02d}"): replace(KEY, key_id=f"{number:02x}") for number in range(20)}
    token, clock = Token(*keys.values()), HandClock()
    watch = _watch(token, clock, keys)
    await watch.look()
    clock.advance(31)
    token.asked.clear()
    for _ in range(5):
        await watch.look()
    assert len(token.asked) == len(set(token.asked)) == 20
