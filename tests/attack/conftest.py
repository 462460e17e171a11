"""What the attacks share: a running stack, small unless a module has a PLAN of its own; the long ones are left out."""

import os
from collections.abc import Iterator

import pytest

from app.devstack.files import StackPlan
from app.devstack.stack import DevStack
from tests.support.honest_till import WHOLE_ATTACK

_SMALL = StackPlan(meters=40, etcd_fsync=False)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long attacks to `make attack`."""
    if os.environ.get(WHOLE_ATTACK):
        return
    long = [item for item in items if item.get_closest_marker("attack_long")]
    if long:
        items[:] = [item for item in items if item not in long]
        config.hook.pytest_deselected(items=long)


@pytest.fixture(scope="module")
def attacked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevStack]:
    """A running stack for a module: its `PLAN`, or a small one."""
    stack = DevStack(tmp_path_factory.mktemp("attacked"), getattr(request.module, "PLAN", _SMALL))
    try:
        stack.start_all()
        yield stack
    finally:
        stack.stop_all()
