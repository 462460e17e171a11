"""A whole cluster on one machine: processes, ports, authorities, keys, emulated meters."""
