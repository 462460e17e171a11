"""Locust suites: callers of utrn.v1 by the thousand; a stranger to the service's code."""
