"""Fixtures for all floors; each lives in tests/support."""

pytest_plugins = ["tests.support.etcd", "tests.support.stack"]
