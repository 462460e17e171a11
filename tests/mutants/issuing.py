"""Mutants of issuing: ids, counters, authorisation, commits."""

from tests.mutants.mutant import Mutant

ISSUING = (
    Mutant(
        name="without-the-vend-absent-compare",
        file="cluster/compares.py",
        old='''must not exist yet (INV-1)."""
    return [_equal(pb.Compare.VERSION, key, version=0)]''',
        new='''must not exist yet (INV-1)."""
    return []''',
        killer=60,
        why="two codes for one payment",
        quick=True,
    ),
    Mutant(
        name="without-the-registration-compare",
        file="cluster/compares.py",
        old='''meter, PAN, supplier, appointment."""
    return [_unmoved(key, revision)]''',
        new='''meter, PAN, supplier, appointment."""
    return []''',
        killer=60,
        why="codes are sold on an appointment, a card or a registration that has ended",
        quick=True,
    ),
    Mutant(
        name="without-the-earlier-answer",
        file="core/flows/issue.py",
        old="        if stored is None:\n            raise refusal\n",
        new="        if stored is None or stored is not None:\n            raise refusal\n",
        killer=60,
        why="a sale that was committed is refused when its till asks again after a lost reply",
        quick=True,
    ),
    Mutant(
        name="refused-for-good-sold-all-the-same",
        file="core/flows/commit.py",
        old="        if not job.answer.done():\n            job.answer.set_result(issued)\n",
        new="""        if not job.answer.done() and issued.stored.vend.counter % 10 == 0:
            job.answer.set_exception(Refused("no"))
            job.answer.exception()
        elif not job.answer.done():
            job.answer.set_result(issued)
""",
        killer=60,
        why="the till gives the money back, and the meter is credited",
        quick=True,
    ),
)
