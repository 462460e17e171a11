"""The decisions of a node put together over ports: issuing, the duties with one owner, administration, services."""
