"""What the core needs from outside, as Protocols; adapters live in hsm, cluster and core.gateways."""
