"""The composition root: configuration, wiring, and the `utrn` command."""
