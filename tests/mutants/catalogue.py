"""The mutants, by part of the product. Each is one compare, catch, wake-up, bound, cursor or state transition less."""

from tests.mutants.clustering import CLUSTERING
from tests.mutants.deliveries import DELIVERIES
from tests.mutants.issuing import ISSUING
from tests.mutants.kit import KIT
from tests.mutants.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = (*ISSUING, *DELIVERIES, *CLUSTERING, *KIT)
