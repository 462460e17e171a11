"""What reads the whole ledger or its changes, and the anchors of the audit log."""
