"""Vends, deliveries owed, ceilings, and the identity of the ledger they are in."""
