"""Every field of a sale, wrong: the refusal names it, says what is needed, and whether money may be given back."""

from typing import Any, Final

import pytest
from utrn.v1 import top_up_service_pb2 as pb
from utrn.v1 import types_pb2
from utrn_client.outcomes import OUTCOMES, Says
from utrn_client.verdict import Failure as Read
from utrn_client.verdict import Verdict, judge_sale

from app.devstack.stack import DevStack
from tests.support.calls import Failure, caller, refused, top_up
from tests.support.selling import new_id, pans

pytestmark = [pytest.mark.real]
LONG: Final = "x" * 300
# Field, a value that is wrong, the reason, and a word of what would be right.
WRONG: tuple[tuple[str, Any, str, str], ...] = (
    ("transaction_id", "", "BAD_FIELD", "UUIDv7"),
    ("transaction_id", "1", "BAD_FIELD", "UUIDv7"),
    ("transaction_id", "c232ab00-9414-11ec-b3c8-9f6bdeced846", "BAD_FIELD", "UUIDv7"),
    ("transaction_id", new_id(shift_s=3600), "TRANSACTION_ID_FROM_FUTURE", "clock"),
    ("pan", "", "BAD_FIELD", "digits"),
    ("pan", "12345", "BAD_FIELD", "digits"),
    ("pan", "982600000000000000x", "BAD_FIELD", "digits"),
    ("pan", "9826000000000000002", "BAD_FIELD", "check digit"),
    ("amount_pence", 0, "AMOUNT_NOT_ENCODABLE", "1 pence"),
    ("amount_pence", -500, "AMOUNT_NOT_ENCODABLE", "1 pence"),
    ("amount_pence", 2**62, "AMOUNT_NOT_ENCODABLE", "819100 pence"),
    ("amount_pence", 10_050, "AMOUNT_NOT_ENCODABLE", "10100 pence"),
    ("channel", 0, "BAD_FIELD", "channel"),
    ("channel", 77, "BAD_FIELD", "channel"),
    ("channel", types_pb2.CHANNEL_NOT_PAID, "BAD_FIELD", "channel"),
    ("reference", types_pb2.SaleReference(outlet_id=LONG), "BAD_FIELD", "characters"),
    ("reference", types_pb2.SaleReference(receipt_id="\x07"), "BAD_FIELD", "characters"),
)


def _judged(failure: Failure, *, repeat: bool) -> Verdict:
    """Return what the kit makes of it: whether money goes back."""
    read = Read(
        reason=failure.reason, message=failure.message, facts=failure.facts, outcome=OUTCOMES[failure.reason],
        retry_delay_s=None,
    )  # fmt: skip
    return judge_sale(read, repeat=repeat)


@pytest.mark.parametrize("method", ["TopUp", "IssueUtrn"])
async def test_a_wrong_field_is_named_with_what_is_needed_and_what_it_means_for_the_money(
    module_stack: DevStack, method: str
) -> None:
    kind = pb.TopUpRequest if method == "TopUp" else pb.IssueUtrnRequest
    async with caller(module_stack) as stub:
        for field, value, reason, word in WRONG:
            right = {"transaction_id": new_id(), "pan": pans(module_stack)[3]}
            for repeat in (False, True):
                asked = top_up(**{**right, field: value, "repeat": repeat})
                request = kind.FromString(asked.SerializeToString())
                failure = await refused(getattr(stub, method)(request, timeout=30))
                about = (field, value, failure)
                assert failure.reason == reason, about
                assert word in failure.message, about
                assert field in failure.message, about
                assert reason.startswith("TRANSACTION_ID") or any(one.startswith(field) for one in failure.fields), (
                    about
                )
                assert OUTCOMES[failure.reason].next, about
                # To the first attempt it is final; a repeat proves nothing unless the ledger fences it.
                verdict = _judged(failure, repeat=repeat)
                assert (verdict is Verdict.NOT_SOLD) is (not repeat or failure.facts.get("final") == "fenced"), about
                assert OUTCOMES[failure.reason].says is Says.NOT_SOLD, about
