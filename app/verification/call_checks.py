"""The checker's rules for what callers were told: one id, one answer, and a final refusal is final."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from app.verification.call_log import FENCED, IF_FIRST, Call, CallKey
from app.verification.observed_run import Finding, Run

REUSED = "TRANSACTION_ID_REUSED"
# The code of a sale that was committed, by who sold it and under which id.
Sold = dict[CallKey, "tuple[str, int]"]


def check_calls(run: Run, sold: Sold) -> Iterator[Finding]:
    """Return which answers cannot be, seen beside each other and beside what was sold: PAN and pence, by key."""
    for key, calls in _by_key(run.calls).items():
        _, transaction_id = key
        answers = {call.digest for call in calls if call.outcome == "ok"}
        if len(answers) > 1:
            yield Finding(1, f"{transaction_id} was answered {len(answers)} different ways")
        if not linearizable(calls):
            yield Finding(1, f"{transaction_id}: no order of its calls explains their answers")
        if len({_content(call) for call in calls if call.outcome == "ok"}) > 1:
            yield Finding(7, f"{transaction_id} got a code for different sales")
        if any(call.repeat and call.outcome == "refused" and call.final == IF_FIRST for call in calls):
            yield Finding(7, f"{transaction_id}: a repeat was refused as only a first attempt may be")
        yield from _refused_and_sold(transaction_id, calls, sold.get(key))
        yield from _answered_and_refused(transaction_id, calls)


def final(call: Call, calls: Sequence[Call]) -> bool:
    """Return whether a refusal says that nothing will ever come of the sale: money may be given back on it.

    Args:
        call: A call.
        calls: Every call of its id.
    """
    if call.outcome != "refused":
        return False
    if call.final == IF_FIRST:
        # Anything else of this id that had begun by then may yet be carried out, unless it too was refused for good.
        others = (one for one in calls if one is not call and one.outcome != "refused")
        return not call.repeat and all(call.ended is not None and other.began > call.ended for other in others)
    return call.final == FENCED


def _refused_and_sold(transaction_id: str, calls: Sequence[Call], sold: tuple[str, int] | None) -> Iterator[Finding]:
    """A sale that was refused for good is never sold: not before, not after, at no node.

    Unless it was asked for once more, from the beginning, after a refusal that did not close its id.
    """
    if sold is None:
        return
    for call in calls:
        # The id of another sale is refused because that one was sold.
        other = call.reason == REUSED and _content(call) != sold
        anew = call.final == IF_FIRST and any(call.ended is not None and one.began > call.ended for one in calls)
        closed = call.final == FENCED or _content(call) == sold
        if final(call, calls) and closed and not other and not anew:
            yield Finding(7, f"{transaction_id} was refused for good ({call.reason}) and sold all the same")


def _answered_and_refused(transaction_id: str, calls: Sequence[Call]) -> Iterator[Finding]:
    """What was answered with a code is answered so for ever."""
    answered = [call for call in calls if call.outcome == "ok" and call.ended is not None]
    for call in calls:
        if call.outcome == "refused" and any(
            one.ended is not None and one.ended < call.began and _content(one) == _content(call) for one in answered
        ):
            yield Finding(7, f"{transaction_id} was answered with its code and refused later ({call.reason})")


def _by_key(calls: Iterable[Call]) -> dict[CallKey, list[Call]]:
    found: dict[CallKey, list[Call]] = defaultdict(list)
    for call in calls:
        found[call.key].append(call)
    return found


def linearizable(calls: Sequence[Call]) -> bool:
    """Return whether some order of the calls of one id, true to real time, explains every answer.

    The model: the first call that takes effect (the founder) fixes content and code; every later one with the same
    content gets that code; one with other content is refused as REUSED. A call without an answer may take effect at any
    time after it began, or never. So an order exists if and only if there is a founder whose content and code
    fit every answer, and which began before every call ended that must come after it: the earliest moment is the best
    one for it. Refusals for other reasons may stand anywhere.
    """
    told = [call for call in calls if call.outcome == "ok"]
    reused = [call for call in calls if call.outcome == "refused" and call.reason == REUSED]
    if not told and not reused:
        return True
    if len({(call.digest, _content(call)) for call in told}) > 1:
        return False
    after = [call.ended for call in (*told, *reused) if call.ended is not None]
    horizon = min(after, default=float("inf"))
    return any(
        founder.began <= horizon
        and all(_content(call) == _content(founder) for call in told)
        and all(_content(call) != _content(founder) for call in reused)
        for founder in calls
        if founder.outcome != "refused"
    )


def _content(call: Call) -> tuple[str, int]:
    return call.content, call.amount_pence
