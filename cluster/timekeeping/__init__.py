"""Cluster time in the ledger, and the fence that keeps a write from happening before its time."""
