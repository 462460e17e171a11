"""Whether promises were kept: money, ledger, calls and audit log held against each other."""
