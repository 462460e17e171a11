"""Fixtures for all floors; each lives in tests/support."""

from hypothesis import settings

pytest_plugins = ["tests.support.etcd", "tests.support.stack"]

# A slow machine is no bug: nothing here measures time.
settings.register_profile("utrn", deadline=None)
settings.load_profile("utrn")
