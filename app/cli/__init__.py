"""The `utrn` command, one file per group of sub-commands."""
