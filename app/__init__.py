"""A node and the `utrn` command, and what runs, breaks and checks whole clusters; the one place that assembles."""
