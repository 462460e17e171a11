"""A whole service as real processes, for tests: one per test, or one for a module."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.devstack.files import StackPlan
from app.devstack.stack import DevStack

MakeStack = Callable[..., DevStack]


@pytest.fixture
def make_stack(tmp_path: Path) -> Iterator[MakeStack]:
    """Make stacks; whatever they have started ends with the test."""
    made: list[DevStack] = []

    def make(**plan: object) -> DevStack:
        stack = DevStack(tmp_path / f"stack{len(made)}", StackPlan(**plan))  # type: ignore[arg-type]
        made.append(stack)
        return stack

    yield make
    for stack in made:
        stack.stop_all()


@pytest.fixture(scope="module")
def module_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevStack]:
    """One running stack for a module whose tests do not hurt it."""
    stack = DevStack(tmp_path_factory.mktemp("stack"), StackPlan(meters=40, etcd_fsync=False))
    try:
        stack.start_all()
        yield stack
    finally:
        stack.stop_all()
