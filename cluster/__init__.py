"""etcd: ledger, outbox, ownership, registry."""
