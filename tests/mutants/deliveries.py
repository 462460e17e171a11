"""Mutants of delivery: what is owed, sent, ended and known of meters."""

from tests.mutants.mutant import Mutant

DELIVERIES = (
    Mutant(
        name="every-delivery-is-closed-unsent",
        file="core/flows/delivery_attempt.py",
        old='''        """Make the attempt."""
''',
        new='''        """Make the attempt."""
        if self._config:
            return await self._enter_by_hand()
''',
        killer=10,
        why="nothing is ever delivered",
        quick=True,
    ),
)
