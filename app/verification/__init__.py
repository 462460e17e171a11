"""Checks what is stored against what was written down elsewhere."""
