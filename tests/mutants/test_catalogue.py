"""Every mutant still fits the code it is a fault of, and its killer is there: refactoring cannot rot them unseen."""

import re

import pytest

from tests.mutants.catalogue import MUTANTS
from tests.mutants.mutant import Mutant
from tests.mutants.run import ROOT

LEAST = 40
PRODUCT = ("core/", "cluster/", "client/", "app/cli/")


def test_there_are_enough_and_each_has_a_name_of_its_own() -> None:
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names) >= LEAST
    assert sum(mutant.quick for mutant in MUTANTS) >= 10


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda one: one.name)
def test_every_fragment_is_in_its_file_exactly_once_and_what_takes_its_place_is_python(mutant: Mutant) -> None:
    assert mutant.file.startswith(PRODUCT)
    text = mutant.apply(mutant.text_in(ROOT))
    if mutant.file.endswith(".py"):
        compile(text, mutant.file, "exec")


@pytest.mark.parametrize("mutant", [one for one in MUTANTS if isinstance(one.killer, str)], ids=lambda one: one.name)
def test_every_killer_is_there(mutant: Mutant) -> None:
    file, _, test = str(mutant.killer).partition("::")
    text = (ROOT / file).read_text(encoding="utf-8")
    assert not test or re.search(rf"def {test.partition('[')[0]}\(", text)
