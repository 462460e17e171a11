"""Fixtures for all floors; each lives in tests/support."""

import os
import shutil
import tempfile

import pytest
from hypothesis import settings

from app.devstack.keeper import keep

pytest_plugins = ["tests.support.etcd", "tests.support.stack"]

# A slow machine is no bug: nothing here measures time.
settings.register_profile("utrn", deadline=None)
settings.load_profile("utrn")


def pytest_configure(config: pytest.Config) -> None:
    """Commands keep their book and look for profiles in a folder of this run, not in that of whoever runs the tests."""
    # A run that is killed leaves nothing behind.
    keep()
    folder = tempfile.mkdtemp(prefix="utrn-state-")
    os.environ["XDG_STATE_HOME"] = os.environ["XDG_CONFIG_HOME"] = folder
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
