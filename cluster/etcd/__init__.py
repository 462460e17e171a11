"""The etcd driver: client, transactions, writes until their outcome is known, list-then-watch, keys."""
